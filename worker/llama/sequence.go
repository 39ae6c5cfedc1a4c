package llama

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// batchTokens is how many tokens pass through the layers together: enough that weights are read rarely. It changes no bits.
const batchTokens = 128

// sequence implements [engine.Sequence].
type sequence struct {
	model  *Model
	kv     kvStore
	length int
	logits []float32 // of the last prefill
	closed bool
}

func (s *sequence) usable(op string) error {
	if s.closed || s.model.closed.Load() {
		return fmt.Errorf("llama: %s: %w", op, engine.ErrClosed)
	}
	return nil
}

// Len implements [engine.Sequence].
func (s *sequence) Len() int { return s.length }

// Prefill implements [engine.Sequence]. No tokens are an error: there would be no logits.
func (s *sequence) Prefill(ctx context.Context, tokens []int32) ([]float32, error) {
	if err := s.usable("prefill"); err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, errors.New("llama: prefill: no tokens: the logits of an empty call are not defined")
	}
	if err := s.accepts("prefill", tokens); err != nil {
		return nil, err
	}
	p := s.model.beginPass(len(tokens))
	defer s.model.endPass(p)
	for len(tokens) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("llama: prefill: stopped after %d tokens: %w", s.length, err)
		}
		n := min(batchTokens, len(tokens))
		var logits []float32
		if n == len(tokens) {
			logits = s.room()
		}
		p.clear()
		p.add(&s.kv, s.length, tokens[:n], logits)
		if err := p.forward(ctx); err != nil {
			return nil, fmt.Errorf("llama: prefill: stopped after %d tokens: %w", s.length, err)
		}
		s.length += n
		tokens = tokens[n:]
	}
	return s.logits, nil
}

// accepts refuses tokens that do not fit, or are none.
func (s *sequence) accepts(op string, tokens []int32) error {
	if free := s.model.context - s.length; len(tokens) > free {
		return fmt.Errorf("llama: %s: %d tokens after %d do not fit %d: %w", op, len(tokens), s.length, s.model.context, engine.ErrContextFull)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= s.model.hparams.vocab {
			return fmt.Errorf("llama: %s: token %d at index %d is outside the vocabulary of %d", op, t, i, s.model.hparams.vocab)
		}
	}
	return nil
}

// room is where the sequence's logits go.
func (s *sequence) room() []float32 {
	if s.logits == nil {
		s.logits = make([]float32, s.model.hparams.vocab)
	}
	return s.logits
}

// checkBlock refuses positions outside the context.
func (s *sequence) checkBlock(op string, pos, limit int) error {
	if n := s.kv.layout.BlockTokens; pos < 0 || pos > limit-n {
		return fmt.Errorf("llama: %s: a block of %d tokens at position %d is outside 0 to %d", op, n, pos, limit)
	}
	return nil
}

// Import implements [engine.Sequence]. Positions below Len keep what they have: computed or imported before, they are in use.
func (s *sequence) Import(pos int, part block.Part, kv []byte) error {
	if err := errors.Join(s.usable("import"), s.checkBlock("import", pos, s.model.context), s.kv.checkPart("import", part, len(kv))); err != nil {
		return err
	}
	s.kv.write(pos, part, s.length, kv)
	return nil
}

// Skip implements [engine.Sequence].
func (s *sequence) Skip(n int) error {
	if err := s.usable("skip"); err != nil {
		return err
	}
	if n < 0 || n > s.model.context-s.length {
		return fmt.Errorf("llama: skip: %d tokens after %d do not fit %d: %w", n, s.length, s.model.context, engine.ErrContextFull)
	}
	if pos, ok := s.kv.firstMissing(s.length, s.length+n); !ok {
		return fmt.Errorf("llama: skip: position %d: %w", pos, engine.ErrNotImported)
	}
	s.length += n
	return nil
}

// Export implements [engine.Sequence].
func (s *sequence) Export(pos int, part block.Part, dst []byte) error {
	if err := errors.Join(s.usable("export"), s.checkBlock("export", pos, s.length), s.kv.checkPart("export", part, len(dst))); err != nil {
		return err
	}
	s.kv.read(pos, part, dst)
	return nil
}

// Close implements [engine.Sequence]. Closing twice is allowed.
func (s *sequence) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	for _, sp := range s.kv.spans {
		if sp != nil {
			s.model.spans.Put(sp)
		}
	}
	s.kv.spans, s.logits = nil, nil
	return nil
}
