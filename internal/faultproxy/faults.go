package faultproxy

import (
	"errors"
	"fmt"
	"time"
)

// Faults are what a Proxy does to traffic; the zero value is none of them. They combine. The JSON names are stable.
type Faults struct {
	// LatencyMS is added to everything the server sends, thus to each round trip.
	LatencyMS int64 `json:"latency_ms,omitempty"`
	// BytesPerSecond is what all connections together carry, in each direction; 0 is no limit.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Loss is which part of the packets, of 1,448 bytes, gets lost and arrives 200 ms late, when it has been sent again.
	Loss float64 `json:"loss,omitempty"`
	// Refuse cuts all connections off and refuses new ones, as a server that is not running does.
	Refuse bool `json:"refuse,omitempty"`
	// Blackhole lets nothing through in either direction. Connections are accepted, since that is the kernel's doing.
	Blackhole bool `json:"blackhole,omitempty"`
	// ResetAfterBytes cuts a connection off when the server has sent that many bytes on it under these faults.
	ResetAfterBytes int64 `json:"reset_after_bytes,omitempty"`
	// FlipEveryBytes flips one bit of what the server sends, about once in that many bytes.
	FlipEveryBytes int64 `json:"flip_every_bytes,omitempty"`
}

const (
	packetBytes = 1448                   // of payload in an Ethernet frame
	resendDelay = 200 * time.Millisecond // Linux sends a lost packet again after that at the earliest, when nothing else tells it
	maxLatency  = 10 * time.Minute
	maxBytes    = 1 << 50
)

// Validate returns all problems of f joined, by the JSON names of the fields.
func (f Faults) Validate() error {
	var errs []error
	for name, v := range map[string]int64{"bytes_per_second": f.BytesPerSecond, "reset_after_bytes": f.ResetAfterBytes, "flip_every_bytes": f.FlipEveryBytes} {
		if v < 0 || v > maxBytes {
			errs = append(errs, fmt.Errorf("%s is %d, want 0 for none, up to %d", name, v, int64(maxBytes)))
		}
	}
	if f.LatencyMS < 0 || f.LatencyMS > maxLatency.Milliseconds() {
		errs = append(errs, fmt.Errorf("latency_ms is %d, want 0 to %d", f.LatencyMS, maxLatency.Milliseconds()))
	}
	if !(f.Loss >= 0 && f.Loss < 1) {
		errs = append(errs, fmt.Errorf("loss is %v, want 0 or more and less than 1", f.Loss))
	}
	return errors.Join(errs...)
}

func (f Faults) latency() time.Duration { return time.Duration(f.LatencyMS) * time.Millisecond }
