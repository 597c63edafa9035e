package main

//go:wasmimport sim jump
func jumpClock(ns int64)
