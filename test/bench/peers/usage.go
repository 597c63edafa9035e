package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is processor time: of the whole machine, idle and busy, and of this process
// and its children that have ended.
type usage struct {
	total, busy, own time.Duration
	known            bool
}

func usageNow() usage {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return usage{}
	}
	var own, children unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &own) != nil || unix.Getrusage(unix.RUSAGE_CHILDREN, &children) != nil {
		return usage{}
	}
	u := parseStat(string(text))
	for _, t := range []unix.Timeval{own.Utime, own.Stime, children.Utime, children.Stime} {
		u.own += time.Duration(t.Nano())
	}
	return u
}

// parseStat reads the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
func parseStat(text string) (u usage) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return u
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	for i, s := range f[1:9] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return usage{}
		}
		u.total += time.Duration(n) * tick
		if i != 3 && i != 4 { // idle, iowait
			u.busy += time.Duration(n) * tick
		}
	}
	u.known = true
	return u
}

// others is the share of the machine since before, in percent, that went to others.
func (u usage) others(before usage) (percent float64, ok bool) {
	total := u.total - before.total
	if !u.known || !before.known || total <= 0 {
		return 0, false
	}
	others := (u.busy - before.busy) - (u.own - before.own)
	return 100 * max(0, others.Seconds()) / total.Seconds(), true
}
