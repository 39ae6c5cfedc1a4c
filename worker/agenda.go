package worker

import "slices"

// step is one call of the engine that a sequence waits for.
type step struct {
	work
	batched bool // one token, which may be computed together with those of other sequences
	done    chan struct{}
	logits  []float32 // with err, set before done is closed
	err     error
}

// agenda decides which steps the engine computes next. Decode steps of all sequences go together; between two chunks of prompts those that
// generate get a step, and between two such steps a prompt gets a chunk, so that neither starves. Prompts take turns in order of
// arrival, chunk by chunk. It only decides: it has no clock, no lock and no goroutine.
type agenda struct {
	decodes, chunks []*step
	chunkLast       bool // what was computed last
}

func (t *agenda) add(s *step) {
	if s.batched {
		t.decodes = append(t.decodes, s)
	} else {
		t.chunks = append(t.chunks, s)
	}
}

// remove takes back a step that has not been handed out, and reports whether it was there.
func (t *agenda) remove(s *step) bool {
	for _, of := range []*[]*step{&t.decodes, &t.chunks} {
		if i := slices.Index(*of, s); i >= 0 {
			*of = slices.Delete(*of, i, i+1)
			return true
		}
	}
	return false
}

func (t *agenda) empty() bool { return len(t.decodes)+len(t.chunks) == 0 }

// decodeNext reports whether next returns decode steps, if anything.
func (t *agenda) decodeNext() bool { return len(t.chunks) == 0 || t.chunkLast && len(t.decodes) > 0 }

// next hands out a chunk, or all decode steps; nil if nothing waits.
func (t *agenda) next() []*step {
	if t.empty() {
		return nil
	}
	if t.decodeNext() {
		t.chunkLast = false
		all := t.decodes
		t.decodes = nil
		return all
	}
	first := t.chunks[0]
	t.chunks = slices.Delete(t.chunks, 0, 1)
	t.chunkLast = true
	return []*step{first}
}
