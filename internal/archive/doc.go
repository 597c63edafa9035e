// Package archive keeps snapshots in an object store: it uploads what is new of
// a checkpoint, lists, verifies and downloads what is there, and removes what is
// no longer wanted.
//
// # What lies where
//
//	<cluster id>/groups/<group id>/manifests/<index>-<leader term>-<hash>   what a snapshot consists of
//	<cluster id>/groups/<group id>/objects/<SHA-256>                        bytes, up to 16 MiB
//	<cluster id>/groups/<group id>/terms/<leader term>                      a leader's claim
//
// Index and terms are 16 hexadecimal digits, hash is the beginning of the
// manifest's own SHA-256. Nothing is ever replaced by something else: objects
// and manifests are named by what they contain.
//
// A manifest lists the snapshot's files as package snapshot's manifest does (a
// SHA-256 for every 1 MiB chunk) and says for each file which extents of which
// objects, one after the other, make it up (docs/formats/archive.md).
//
// # What an upload sends
//
// The base is the newest snapshot there whose objects are all there. A chunk
// that the base has in the same place of the same file is not sent: its extents
// are named again. Of a chunk that grew, the last of a file that is appended to,
// the beginning is checked against the base's hash and only the rest is sent. A
// chunk made of more than 16 extents is sent whole again, so that reading stays
// cheap. What is sent is gathered into objects of up to 16 MiB; an object that
// is there already (left by an upload that died) is not sent.
//
// # Order of an upload, and why it may die anywhere
//
//	claim the term → list → objects → the claims again → manifest → list again
//
// Before the manifest nothing refers to the new objects: a death leaves garbage,
// which the next upload uses or the collector removes. The manifest is written
// if absent. Afterwards everything it names is looked for once more; if something
// is gone, the upload fails and is repeated.
//
// # Why nobody removes what another needs
//
// The collector removes an object only if it has seen it unreferenced in every
// pass for the grace time (by its own clock, forgotten with the process), and if
// the manifests were listed again less than Window ago and still do not name it.
// An upload lasts at most half the grace time from its first listing to its
// manifest, else it starts again. So whatever it decided not to send was
// referenced, or garbage of less than grace, when it looked, and its manifest
// is there before anyone may remove it. Garbage that is older may be removed by
// the same node only, which does not do both at once, or by a leader of a
// higher term, whose claim makes the upload fail, or by one of a lower term,
// which may have looked just before the claim: a new leader waits for Window
// after its claim, if another's was there.
//
// A collector that sees a higher claim than its own stops: a deposed leader
// removes nothing. What it uploads is harmless: a checkpoint is committed state
// whoever wrote it, its name is its own, and the index orders the snapshots.
//
// If all this fails (a process that sleeps for longer than the grace time within
// one call), a snapshot lacks an object: reading says so and falls back to the
// snapshot before it, and the next upload takes another base.
//
// A manifest that cannot be read keeps every object from being removed.
//
// # Who owns what
//
// The Manager, one a node, runs uploads and collections of the groups this node
// leads. Reading needs no Manager and no cluster.
//
// # Memory
//
// An upload holds one object (16 MiB), one chunk, the new manifest and the
// base's. Reading holds a chunk for each of 4 workers, and the manifest.
//
// # Non-goals
//
// Objects of which a part is wanted are kept whole; nothing is repacked. What
// the blob in a checkpoint means is the state machine's. Snapshots of different
// groups are not taken at one moment.
package archive
