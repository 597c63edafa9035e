//go:build !linux

package vfs

// OpenDirect has no portable form.
func OpenDirect(FS, string) *Direct { return nil }

// WriteAt is never called: there is no Direct.
func (d *Direct) WriteAt(b []byte, off int64) (int, error) { return d.f.WriteAt(b, off) }
