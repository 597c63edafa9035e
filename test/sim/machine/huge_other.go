//go:build !linux

package machine

import "syscall"

const mapFlags = syscall.MAP_ANON | syscall.MAP_PRIVATE

func adviseHuge([]byte) {}

func collapseCode() {}
