// Package crash holds what kill -9 cannot show, since it leaves the page cache: that
// each fsync is made, in time, and is enough. Three nodes run in one process, each on
// a memory disk that knows what was synced. At many moments the power of all three
// goes at once; what is left of the disks is read without them, and is started again.
//
//	run ──▶ acknowledgement ──▶ cut ──▶ read the disks: the record is on two of three
//	    ──▶ durable step    ──▶ cut ──▶ start them: all that was acknowledged is there
//
// Each kind of sync is also left out once, to see that this is noticed.
package crash
