// Package bucket keeps objects: in a directory, in an S3 bucket, or, for
// tests, in memory with faults on demand.
//
//	file:///dir                                     a directory, made when first written
//	s3://bucket/prefix?endpoint=http://h:p&region=r an S3 bucket; without endpoint, Amazon's
//
// An object is named by slash-separated elements, is at most MaxObjectBytes
// long, and is written whole or not at all.
//
// # Durable and atomic
//
// Directory: an object is written to root/.tmp, synced, then renamed (Put) or
// hard-linked (PutIfAbsent: a link never replaces) to its name, and its
// directory is synced. A crash before that leaves a file in .tmp, which is
// removed a day later. S3: one PUT, with If-None-Match: * for PutIfAbsent.
//
// # Nothing waits for ever
//
// Every call ends when ctx does, or with ErrStalled when not a byte has moved
// for Options.Stall; no limit is set on a call's duration. An S3 connection is
// then closed. A system call cannot be interrupted: on a directory that hangs
// the call returns and leaves a goroutine behind, at most maxLeft of them, and
// further calls fail at once.
//
// # Memory
//
// Data is handed over and read in the caller's buffers. A directory that is
// read holds one more buffer of the length asked for.
//
// # Non-goals
//
// Who may write which name, and what an object means, is the caller's. There is
// no cache and no retry of refusals; what a server calls temporary is tried three times.
package bucket
