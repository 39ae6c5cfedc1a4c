//go:build unix

package llama

import (
	"os"
	"syscall"
)

// stampOf describes the present state of a file; ok if it is a regular one.
func stampOf(path string) (s stamp, ok bool) {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return s, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return s, false
	}
	return stamp{Device: uint64(sys.Dev), Inode: sys.Ino, Size: st.Size(), ModTime: st.ModTime().UnixNano()}, true
}
