// Package crash holds what kill -9 cannot show, since it leaves the page cache: that
// each fsync is made, in time, and is enough. Three nodes run in one process, each on
// a memory disk that knows what was synced. At many moments the power of all three
// goes at once; what is left of the disks is read without them, and is started again.
//
//	run ──▶ acknowledgement ──▶ cut ──▶ read the disks: the record is on two of three
//	    ──▶ durable step    ──▶ cut ──▶ start them: all that was acknowledged is there
//
// A walk does both at every change of a disk, named point and acknowledgement of a story: a node's life,
// a founding and a rejoin (docs/adr/0018-cutting-at-every-step.md).
//
// Each kind of sync, and in the long form the syncs of each line of the sources, is also left out once,
// to see that this is noticed.
package crash
