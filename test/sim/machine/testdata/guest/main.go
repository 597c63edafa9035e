//go:build wasip1

// A guest small enough to be compiled in every test: one behaviour for each mode.
package main

import (
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"
)

//go:wasmimport sim jump
func jump(ns int64)

var (
	seed  = flag.Uint64("seed", 0, "")
	steps = flag.Int("steps", 0, "")
	skip  = flag.String("skip", "", "")
	mode  = flag.String("mode", "", "")
	need  = flag.Int("need", 0, "")
)

func main() {
	flag.Parse()
	began := time.Now()
	h := sha256.New()
	modes[*mode](io.MultiWriter(h, os.Stdout))
	result(h, time.Since(began), "")
}

func result(h hash.Hash, virtual time.Duration, violated string) {
	counts := map[string]int64{"nodes": 3}
	for i, name := range plan() {
		if !skipped()[strconv.Itoa(i)] && i < *steps { // each begins at the step of its number
			counts["fault "+name]++
		}
	}
	r := map[string]any{
		"seed": *seed, "steps": *steps, "hash": fmt.Sprintf("%x", h.Sum(nil)), "events": *steps,
		"virtual_ns": virtual, "faults": plan(), "counts": counts,
	}
	code := 0
	if violated != "" {
		r["violation"] = map[string]string{"check": violated, "detail": "as asked"}
		code = 1
	}
	line, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	fmt.Printf("RESULT %s\n", line)
	os.Exit(code)
}

func plan() []string {
	return []string{"crash", "cut", "crash", "wipe", "jump", "cut", "flip", "flip"}
}

func skipped() map[string]bool {
	out := map[string]bool{}
	for s := range strings.SplitSeq(*skip, ",") {
		out[s] = true
	}
	return out
}

var modes = map[string]func(io.Writer){
	"mixed": mixed,
	"sleep": func(w io.Writer) {
		began, wall := time.Now(), time.Now().UnixNano()
		time.Sleep(time.Hour)
		fmt.Fprintln(w, time.Since(began).Truncate(time.Millisecond), time.Duration(time.Now().UnixNano()-wall).Truncate(time.Millisecond))
	},
	"jump": func(w io.Writer) {
		began, wall := time.Now(), time.Now().UnixNano()
		jump(int64(-25 * time.Hour))
		fmt.Fprintln(w, time.Since(began).Truncate(time.Millisecond), time.Duration(time.Now().UnixNano()-wall).Round(time.Millisecond))
	},
	"busy": func(w io.Writer) {
		for began := time.Now(); time.Since(began) < 10*time.Millisecond; {
		}
		fmt.Fprintln(w, "time went on")
	},
	// The violation needs some of the faults and some of the steps.
	"violation": func(w io.Writer) {
		fmt.Fprintln(w, "before")
		if s := skipped(); !s["1"] && !s["6"] && *steps >= *need {
			result(sha256.New(), 0, "agreement")
		}
	},
	"panic": func(io.Writer) {
		names, _ := json.Marshal(plan())
		fmt.Printf("PLAN %s\n", names)
		go func() { panic(fmt.Sprintf("broken at %d", *steps)) }()
		select {}
	},
	"deadlock": func(io.Writer) { select {} },
	"exit":     func(io.Writer) { os.Exit(7) },
	"silent":   func(io.Writer) { os.Exit(0) },
	"liar":     func(io.Writer) { fmt.Println(`RESULT {"violation":{"check":"agreement"}}`); os.Exit(0) },
	"garbage":  func(io.Writer) { fmt.Println(`RESULT {"events":"many"}`); os.Exit(0) },
	"spin": func(io.Writer) {
		for n := uint64(1); n != 0; n |= 1 {
			sink += n
		}
	},
	"ask": func(io.Writer) {
		for {
			sink += uint64(time.Now().UnixNano())
		}
	},
	"forever": func(io.Writer) {
		for {
			time.Sleep(time.Minute)
		}
	},
	"flood": func(w io.Writer) {
		for i := range 200_000 {
			fmt.Printf("line %d of many\n", i)
		}
	},
	"bomb": func(io.Writer) {
		for {
			held = append(held, make([]byte, 1<<20))
		}
	},
}

var (
	sink uint64
	held [][]byte
)

// mixed does what differs from run to run on an ordinary machine.
func mixed(w io.Writer) {
	m := map[int]int{}
	for i := range 20 {
		m[i] = i
	}
	for k := range m {
		fmt.Fprint(w, k, " ")
	}
	fmt.Fprintln(w, rand.Uint64(), rand.Perm(10))
	var b [16]byte
	_, _ = crand.Read(b[:])
	fmt.Fprintf(w, "%x\n", b)
	out, ready := make(chan string), make(chan int, 64)
	for i := range 64 {
		ready <- i
	}
	for i := range 10 {
		go func() {
			for range 5 {
				time.Sleep(rand.N(10 * time.Millisecond))
				select {
				case n := <-ready:
					out <- fmt.Sprint(i, " got ", n)
				case out <- fmt.Sprint(i, " sends"):
				case <-time.After(rand.N(time.Millisecond)):
					out <- fmt.Sprint(i, " waited")
				}
			}
		}()
	}
	for range 50 {
		fmt.Fprintln(w, <-out, time.Now().UnixNano())
	}
	garbage := make([][]byte, 100)
	for i := range 5000 {
		garbage[i%100] = make([]byte, rand.N(100_000))
	}
	fmt.Fprintln(w, len(garbage[rand.N(100)]))
}
