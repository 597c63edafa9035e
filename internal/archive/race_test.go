//go:build race

package archive

// The race detector makes the model twenty times slower.
func init() { *modelSeeds = 40 }
