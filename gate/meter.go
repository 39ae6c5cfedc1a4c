package gate

import (
	"math"
	"sync"
	"time"

	"github.com/kvtier/kvtier/internal/ewma"
)

// PrefillMeter fits a Prefill to what was measured. Old measurements fade, so that it follows an engine that becomes slower, as with
// more requests at once. It is safe for concurrent use; the zero value is ready.
type PrefillMeter struct {
	mu sync.Mutex
	// Sums over measurements, each weighted and faded: of weight, of position x and seconds per token y, and of their products.
	w, x, y, xx, xy float64
}

const (
	// prefillMemory is after how many tokens a measurement counts 1/e.
	prefillMemory = 8192
	// fullCall is from how many tokens on a call costs its tokens and little else. Shorter ones are mostly overhead and count less.
	fullCall = 64
)

// Observe takes in that n tokens at positions at onward took d.
func (m *PrefillMeter) Observe(at, n int, d time.Duration) {
	if n <= 0 || d <= 0 {
		return
	}
	weight := float64(n) * min(1, float64(n)/fullCall)
	x, y := float64(at)+float64(n)/2, d.Seconds()/float64(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	fade := math.Exp(-weight / prefillMemory)
	m.w = m.w*fade + weight
	m.x = m.x*fade + weight*x
	m.y = m.y*fade + weight*y
	m.xx = m.xx*fade + weight*x*x
	m.xy = m.xy*fade + weight*x*y
}

// Estimate returns the line of least squares through what was measured, with no slope where the positions do not differ enough for one, and
// never one that goes down or begins below zero.
func (m *PrefillMeter) Estimate() Prefill {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.w == 0 {
		return Prefill{}
	}
	x, y := m.x/m.w, m.y/m.w
	spread := m.xx/m.w - x*x
	if spread < fullCall*fullCall {
		return Prefill{Token: y}
	}
	slope := (m.xy/m.w - x*y) / spread
	switch {
	case slope <= 0:
		return Prefill{Token: y}
	case slope*x >= y:
		return Prefill{Position: m.xy / m.xx}
	}
	return Prefill{Token: y - slope*x, Position: slope}
}

// PathMeter measures a Path. It is safe for concurrent use; the zero value is ready.
type PathMeter struct {
	mu        sync.Mutex
	rtt, byte ewma.Average
}

// minute keeps a measured duration from being taken for one that was not measured.
const minute = 1e-9

// Asked takes in how long an answer took, or how long none came.
func (m *PathMeter) Asked(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rtt.Lean(max(d.Seconds(), minute))
}

// Read takes in how long values of so many bytes took, question included.
func (m *PathMeter) Read(bytes int, d time.Duration) {
	if bytes <= 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// A short read is all question, and the estimate of that may be old: a quarter of the time at least was for the bytes.
	s := max(d.Seconds()-float64(m.rtt), d.Seconds()/4, minute)
	m.byte.Lean(s / float64(bytes))
}

// Renew is Read for a path that was judged slow: if it has become fast, it is fast at once.
func (m *PathMeter) Renew(bytes int, d time.Duration) {
	m.Read(bytes, d)
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := ewma.Average(max(d.Seconds(), minute) / float64(max(bytes, 1))); bytes > 0 && s < m.byte {
		m.byte = s
	}
}

// Estimate returns what was measured.
func (m *PathMeter) Estimate() Path {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Path{RTT: float64(m.rtt), Byte: float64(m.byte)}
}

// Explorer says when a path that was judged too slow is measured again: the first time, then once in so many requests or after
// so long, whichever is sooner. It is safe for concurrent use.
type Explorer struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

const (
	exploreRequests = 64
	explorePause    = 2 * time.Second
)

// Due reports whether the path is to be measured now, and counts the question.
func (e *Explorer) Due(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.skipped++
	if e.skipped < exploreRequests && now.Sub(e.last) < explorePause {
		return false
	}
	e.last, e.skipped = now, 0
	return true
}
