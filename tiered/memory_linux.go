//go:build linux && !race

package tiered

import "syscall"

// mapMemory returns n zeroed bytes outside the Go heap, nil if the system has none. The race detector cannot see such memory, so that race
// builds use the heap.
func mapMemory(n int) []byte {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	return b
}

func unmapMemory(b []byte) { _ = syscall.Munmap(b) }

// discardMemory gives the pages of b back to the system: b stays usable and reads as zeros. Where the system's pages are larger than ours
// it does nothing.
func discardMemory(b []byte) { _ = syscall.Madvise(b, syscall.MADV_DONTNEED) }
