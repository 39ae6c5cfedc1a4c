package stalecheck

import "iter"

// fault is a set of kinds of faults.
type fault uint32

const (
	faultFlush fault = 1 << iota
	faultEvict
	faultRollback
	faultFork
	faultCorrupt
	faultTruncate
	faultForge
	faultMisplace
	faultLostWrite
	faultLateWrite
	faultPartition
	faultRecord
	faultHints
	faultForget
	faultRestart
	faultPause
	faultsEnd
)

var faultNames = []string{
	"flush", "evict", "roll back to a snapshot", "two histories of one record", "flipped bits", "values cut short", "forged lengths",
	"values under other keys", "lost writes", "late and repeated writes", "partition", "damaged record", "lost and repeated hints",
	"coordinator forgets", "worker restarts", "long pause",
}

func (f fault) String() string {
	for i, name := range faultNames {
		if f == 1<<i {
			return name
		}
	}
	return "several"
}

func allFaults() iter.Seq[fault] {
	return func(yield func(fault) bool) {
		for f := fault(1); f < faultsEnd; f <<= 1 {
			if !yield(f) {
				return
			}
		}
	}
}
