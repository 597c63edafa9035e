// Package recover tests, with real processes, what is left when a majority of the
// disks is gone: the survivor waits and says so, and becomes a new cluster.
package recover
