// Package cli holds the commands of chronik against what they promise, as real
// processes against a real cluster.
package cli
