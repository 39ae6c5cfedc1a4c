//go:build !unix

package bench

import "time"

// cpuTime is unknown here: processor seconds per GB read 0.
func cpuTime() time.Duration { return 0 }
