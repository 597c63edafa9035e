//go:build !wasip1

package main

import (
	"flag"
	"os"
	"runtime/pprof"
)

// The native guest tells the compiler of the other one what it computes: see 'make sim-profile'.
func init() {
	path := flag.String("cpuprofile", "", "file for a profile of the run")
	began = func() {
		if *path == "" {
			return
		}
		f, err := os.Create(*path)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			panic(err)
		}
		ended = func() {
			pprof.StopCPUProfile()
			if err := f.Close(); err != nil {
				panic(err)
			}
		}
	}
}
