package gate

import (
	"fmt"
	"sort"
	"time"
)

// Mode says what a request does about blocks that only the remote tier has.
type Mode uint8

const (
	// Auto loads, computes or does both, whichever is estimated to be the fastest. The estimates are measured.
	Auto Mode = iota
	// Always loads whatever is there, from the front, and waits for it as long as the time-outs allow.
	Always
	// Never computes: the remote tier is written and not read.
	Never
)

var modeNames = [...]string{"auto", "always", "never"}

// ParseMode reads "auto", "always" or "never".
func ParseMode(s string) (Mode, error) {
	for g, name := range modeNames {
		if s == name {
			return Mode(g), nil
		}
	}
	return 0, fmt.Errorf("gate: unknown mode %q, want \"auto\", \"always\" or \"never\"", s)
}

func (g Mode) String() string {
	if int(g) < len(modeNames) {
		return modeNames[g]
	}
	return fmt.Sprintf("Mode(%d)", uint8(g))
}

// Prefill is how long an engine takes to compute: a token at position p takes Token + p·Position seconds, because attention looks at
// everything before it. The zero value means that nothing has been measured.
type Prefill struct {
	Token    float64 // seconds
	Position float64 // seconds per position
}

// Known reports whether there is an estimate.
func (p Prefill) Known() bool { return p != Prefill{} }

// Seconds is how long n tokens at positions at onward take.
func (p Prefill) Seconds(at, n int) float64 {
	return float64(n) * (p.Token + p.Position*(float64(at)+float64(n)/2))
}

// Path is the way to the remote tier as reads see it. Zero fields have not been measured.
type Path struct {
	RTT  float64 // seconds that a question takes, whatever it is about
	Byte float64 // seconds that a byte of values takes beyond that
}

// Seconds is how long reading so many bytes takes.
func (p Path) Seconds(bytes float64) float64 { return p.RTT + p.Byte*bytes }

// Work is what a request can load or compute: tokens At to End-1, of which At is the first that is not there yet.
type Work struct {
	At, End    int
	Block      int     // tokens of a block; At and End are multiples of it
	TokenBytes float64 // bytes of a token's K/V
}

func (w Work) bytes(from int) float64 { return float64(w.End-from) * w.TokenBytes }

// Choice is what the gate has decided.
type Choice uint8

// Choices.
const (
	Compute Choice = iota // nothing is fetched
	Load                  // everything is fetched
	Both                  // the engine computes from the front, while blocks are fetched from the back, until they meet
	Measure               // everything is fetched, because something has not been measured yet
)

var choiceNames = [...]string{"compute", "load", "both", "measure"}

func (c Choice) String() string { return choiceNames[c] }

// Plan is a decision with the estimates it rests on.
type Plan struct {
	Choice Choice
	// Meet is the first token that is fetched: At if all are, End if none is.
	Meet int
	// Seconds that each way is estimated to take; 0 where nothing is known.
	Load, Compute, Both float64
}

const (
	// loadShare is α: loading everything has to take less than this part of computing, because estimates are wrong at times and loading
	// burdens others.
	loadShare = 0.7
	// bothShare is by how much doing both has to beat the better of the two: it costs processor time of both.
	bothShare = 0.9
	// graceShare is the part of the time to compute that a request may spend on waiting for an answer to "what is there".
	graceShare = 0.01
	// meetSlack is how far estimates may be off before a request stops to wait for what it was promised.
	meetSlack = 2
)

// Decide chooses the fastest way to get w, by the estimates. It is a pure function.
func Decide(path Path, pre Prefill, w Work) Plan {
	plan := Plan{Choice: Compute, Meet: w.End}
	if w.At >= w.End {
		return plan
	}
	plan.Load, plan.Compute = path.Seconds(w.bytes(w.At)), pre.Seconds(w.At, w.End-w.At)
	if !pre.Known() || path.Byte == 0 {
		plan.Choice, plan.Meet = Measure, w.At
		return plan
	}
	meet := w.meet(path, pre)
	plan.Both = w.both(path, pre, meet)
	switch {
	case plan.Both < bothShare*min(plan.Load, plan.Compute):
		plan.Choice, plan.Meet = Both, meet
	case plan.Load < loadShare*plan.Compute:
		plan.Choice, plan.Meet = Load, w.At
	}
	return plan
}

// both is how long it takes to compute up to m and to fetch the rest meanwhile.
func (w Work) both(path Path, pre Prefill, m int) float64 {
	compute := pre.Seconds(w.At, m-w.At)
	if m == w.End {
		return compute
	}
	return max(compute, path.Seconds(w.bytes(m)))
}

// meet is the boundary of a block where both sides arrive at the same time, or as nearly as blocks allow.
func (w Work) meet(path Path, pre Prefill) int {
	at := func(block int) int { return min(w.At+block*w.Block, w.End) }
	blocks := (w.End - w.At + w.Block - 1) / w.Block
	i := sort.Search(blocks, func(i int) bool { return pre.Seconds(w.At, at(i)-w.At) >= path.Seconds(w.bytes(at(i))) })
	if i > 0 && w.both(path, pre, at(i-1)) < w.both(path, pre, at(i)) {
		i--
	}
	return at(i)
}

// Ask decides whether to ask the remote tier what it has of w, and for how long the request may wait for the answer before it begins to
// compute, with the question still under way. most is how long it may wait at all.
func Ask(path Path, pre Prefill, w Work, most time.Duration) (ask bool, wait time.Duration) {
	if w.At >= w.End {
		return false, 0
	}
	if !pre.Known() || path.RTT == 0 {
		return true, most
	}
	compute := pre.Seconds(w.At, w.End-w.At)
	switch {
	case path.RTT >= compute: // two round trips at least: it would arrive when everything is computed
		return false, 0
	case path.RTT > graceShare*compute:
		return true, 0
	}
	return true, min(most, Seconds(max(meetSlack*path.RTT, graceShare*compute)))
}

// Patience is how long to wait for the next block before the estimates are looked at again.
func (p Plan) Patience() time.Duration { return max(time.Millisecond, Seconds(p.Load/4)) }

// Deadline is how long to wait for what the plan fetches: twice the estimate. A link that is faster than any clock still gets a moment.
func (p Plan) Deadline(most time.Duration) time.Duration {
	switch p.Choice {
	case Both:
		return min(most, max(moment, Seconds(meetSlack*p.Both)))
	case Load:
		return min(most, max(moment, Seconds(meetSlack*p.Load)))
	}
	return most
}

// Overdue is after how long an answer is late, and not merely slower than computing.
func Overdue(p Path) time.Duration { return max(moment, Seconds(meetSlack*p.RTT)) }

// moment is how late anything may be that is estimated to take no time.
const moment = 20 * time.Millisecond

// Seconds is a number of seconds as a duration.
func Seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
