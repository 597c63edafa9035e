// Package config is a node's settings: one table of them (settings.go), from
// which loading, printing and the reference page are made.
//
// A value comes from the last of these that sets it:
//
//	default → TOML file → CHRONIK_* environment → flags
//
// Loading is strict. A key nobody knows, a value of the wrong type, a key set
// twice: each is an error that names the file and line, the variable or the
// flag, and the nearest name. What is loaded is valid: Validate has passed, and
// what follows from other settings (kafka.advertised, snapshot.keep_entries,
// raft.listen in a cluster) is filled in.
//
// # Who owns what
//
// A Config is made once at start and never changed. Topic settings are not
// here: they are the metadata group's.
//
// # Non-goals
//
// Reloading at run time. Variables inside values. Secrets: the object store
// takes its own from its usual places.
package config
