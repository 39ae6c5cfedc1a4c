package worker

import (
	"context"
	"sync"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// work is what a sequence asks of its engine.
type work struct {
	ctx    context.Context
	engine engine.Engine
	seq    engine.Sequence
	tokens []int32
	// visit, if not nil, wants the logits behind each of tokens: see engine.Scorer, which the engine is then.
	visit func(i int, logits []float32)
}

func (w *work) prefill() ([]float32, error) {
	if w.visit != nil {
		return w.engine.(engine.Scorer).Score(w.ctx, w.seq, w.tokens, w.visit)
	}
	return w.seq.Prefill(w.ctx, w.tokens)
}

// schedule orders the calls of an engine that computes several sequences at once, as agenda has it. Each caller waits for its own step. A
// sequence that is alone computes in its caller's goroutine; as soon as there are several, one goroutine computes for all of them, and
// ends when nothing is left to do, which is at the latest when the last caller has its answer.
// Calls of an engine that is no engine.Batcher are not ordered: it computes them side by side.
type schedule struct {
	mu struct {
		sync.Mutex
		agenda    agenda
		computing bool // somebody is
		open      int  // sequences that compute or will
		decoding  int  // of these, those that generate
		step      time.Duration
	}
	// more wakes the goroutine that waits for a batch to fill.
	more chan struct{}
}

func newSchedule() *schedule { return &schedule{more: make(chan struct{}, 1)} }

// opened tells that a sequence will compute, until the returned function is called.
func (s *schedule) opened() (closed func()) {
	s.count(&s.mu.open, 1)
	return func() { s.count(&s.mu.open, -1) }
}

// decodes tells that a sequence will ask for one token after the other, until the returned function is called.
func (s *schedule) decodes() (stopped func()) {
	s.count(&s.mu.decoding, 1)
	return func() { s.count(&s.mu.decoding, -1) }
}

func (s *schedule) count(n *int, by int) {
	s.mu.Lock()
	*n += by
	s.mu.Unlock()
	s.wake() // a batch may be complete now
}

func (s *schedule) wake() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// do computes w when its turn comes: a chunk of a prompt, or the next token of a sequence that generates.
func (s *schedule) do(w work, decode bool) ([]float32, error) {
	if _, ok := w.engine.(engine.Batcher); !ok {
		return w.prefill()
	}
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	st := &step{work: w, batched: decode, done: make(chan struct{})}
	s.mu.Lock()
	alone := s.mu.open <= 1 && !s.mu.computing && s.mu.agenda.empty()
	start := !s.mu.computing
	s.mu.computing = true
	if !alone {
		s.mu.agenda.add(st)
	}
	s.mu.Unlock()
	if alone {
		logits, err := w.prefill()
		s.handOver()
		return logits, err
	}
	if start {
		go s.run()
	}
	s.wake()
	select {
	case <-st.done:
		return st.logits, st.err
	case <-w.ctx.Done():
	}
	s.mu.Lock()
	waits := s.mu.agenda.remove(st)
	s.mu.Unlock()
	if waits {
		return nil, w.ctx.Err()
	}
	<-st.done // being computed: the sequence is in use
	return st.logits, st.err
}

// handOver ends the computing of one that was alone.
func (s *schedule) handOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.agenda.empty() {
		s.mu.computing = false
	} else {
		go s.run()
	}
}

func (s *schedule) run() {
	for {
		batch := s.next()
		if batch == nil {
			return
		}
		start := time.Now()
		compute(batch)
		if batch[0].batched {
			s.mu.Lock()
			s.mu.step = time.Since(start)
			s.mu.Unlock()
		}
	}
}

// next waits until the sequences that generate have all asked for their next token, but no longer than a quarter of what a step takes: one that is
// late, because its client made it wait, does not hold up the others. nil means that nothing is left to do.
func (s *schedule) next() []*step {
	var late <-chan time.Time
	for {
		s.mu.Lock()
		t := &s.mu.agenda
		complete := !t.decodeNext() || len(t.decodes) >= s.mu.decoding
		if t.empty() || complete || late != nil && expired(late) {
			batch := t.next()
			s.mu.computing = len(batch) > 0
			s.mu.Unlock()
			if len(batch) == 0 {
				return nil
			}
			return batch
		}
		patience := min(max(s.mu.step/4, 50*time.Microsecond), 5*time.Millisecond)
		s.mu.Unlock()
		if late == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-s.more:
		case <-late:
			late = closedTimer
		}
	}
}

// closedTimer is a timer that has gone off.
var closedTimer = func() <-chan time.Time { c := make(chan time.Time); close(c); return c }()

func expired(late <-chan time.Time) bool {
	select {
	case <-late:
		return true
	default:
		return false
	}
}

// compute runs steps of one engine: one of them as its own call, several decode steps as one. When that fails, each gets a call of its own, so
// that one sequence's trouble stays its own.
func compute(batch []*step) {
	if len(batch) > 1 && together(batch) {
		return
	}
	for _, st := range batch {
		st.logits, st.err = st.prefill()
		close(st.done)
	}
}

func together(batch []*step) bool {
	seqs, tokens := make([]engine.Sequence, len(batch)), make([]int32, len(batch))
	for i, st := range batch {
		seqs[i], tokens[i] = st.seq, st.tokens[0]
	}
	// A client that leaves ends its own sequence afterwards, not this step of the others.
	logits, err := batch[0].engine.(engine.Batcher).Step(context.WithoutCancel(batch[0].ctx), seqs, tokens)
	if err != nil || len(logits) != len(batch) {
		return false
	}
	for i, st := range batch {
		st.logits = logits[i]
		close(st.done)
	}
	return true
}
