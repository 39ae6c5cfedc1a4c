package llamacpp

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// sequence implements [engine.Sequence], [engine.Resumer] and [engine.Generator].
type sequence struct {
	engine *Engine
	slot   *slot  // nil unless it waits to generate, or does
	reign  uint64 // of the slot when its contents were last looked at
	scope  string
	begun  bool
	tokens []int32 // as announced, or as far as they are known
	held   int     // how many of them the slot has, in blocks
	length int
	in     imports
	out    *savedSlot // what Export reads
	closed bool
}

func (s *sequence) usable(op string) error {
	if s.closed || s.engine.closed.Load() {
		return fmt.Errorf("llamacpp: %s: %w", op, engine.ErrClosed)
	}
	return nil
}

// Len implements [engine.Sequence].
func (s *sequence) Len() int { return s.length }

// Prefill implements [engine.Sequence]: it refuses, because llama-server gives out no logits. See Generate.
func (s *sequence) Prefill(context.Context, []int32) ([]float32, error) {
	return nil, errors.Join(s.usable("prefill"), fmt.Errorf("llamacpp: llama-server gives out no logits: use Generate: %w", errors.ErrUnsupported))
}

// Resume implements [engine.Resumer].
func (s *sequence) Resume(ctx context.Context, tokens []int32, scope func() string) (stored int, err error) {
	if err := s.usable("resume"); err != nil {
		return 0, err
	}
	if s.begun || s.length > 0 || s.in.blocks != nil {
		return 0, errors.New("llamacpp: resume: the sequence has begun already")
	}
	s.tokens = tokens[:len(tokens):len(tokens)]
	if err := s.claim(ctx, scope); err != nil {
		return 0, err
	}
	s.length = s.held
	if !s.engine.usable() {
		return -1, nil
	}
	n := s.engine.layout.BlockTokens
	return min(s.slot.stored, s.held) / n * n, nil
}

// claim takes a slot of a server that answers, one that holds much of the sequence's tokens if there is any.
func (s *sequence) claim(ctx context.Context, scope func() string) (err error) {
	s.begun = true
	if s.slot, s.scope, err = s.engine.pool.claim(ctx, s.tokens, scope); err != nil {
		return fmt.Errorf("llamacpp: waiting for a slot: %w", err)
	}
	if err := s.engine.attest(ctx, s.slot); err != nil {
		s.release()
		return err
	}
	s.reign = s.slot.reign
	if !s.engine.usable() {
		s.scope = ""
	}
	n := s.engine.layout.BlockTokens
	s.held = s.slot.held(s.scope, s.tokens) / n * n
	return nil
}

func (s *sequence) release() {
	if s.slot != nil {
		s.engine.pool.release(s.slot)
		s.slot = nil
	}
}

func (s *sequence) checkBlock(op string, pos, limit int, part block.Part, bytes int) error {
	l := s.engine.layout
	if pos < 0 || pos > limit-l.BlockTokens {
		return fmt.Errorf("llamacpp: %s: a block of %d tokens at position %d is outside 0 to %d", op, l.BlockTokens, pos, limit)
	}
	if part.Index < 0 || part.Index >= l.PartCount() || l.Part(part.Index) != part {
		return fmt.Errorf("llamacpp: %s: part %d with bytes %d to %d is not one of the layout's %d parts",
			op, part.Index, part.Offset, part.End(), l.PartCount())
	}
	if want := l.PartBytes(part); bytes != want {
		return fmt.Errorf("llamacpp: %s: part %d has %d bytes, want %d", op, part.Index, bytes, want)
	}
	return nil
}

// Import implements [engine.Sequence]. The bytes are copied; they reach the server when the sequence generates.
func (s *sequence) Import(pos int, part block.Part, kv []byte) error {
	if err := errors.Join(s.usable("import"), s.checkBlock("import", pos, s.engine.context, part, len(kv))); err != nil {
		return err
	}
	s.in.layout = s.engine.layout
	s.in.put(pos, part, kv)
	return nil
}

// Skip implements [engine.Sequence].
func (s *sequence) Skip(n int) error {
	if err := s.usable("skip"); err != nil {
		return err
	}
	if n < 0 || n > s.engine.context-s.length {
		return fmt.Errorf("llamacpp: skip: %d tokens after %d do not fit %d: %w", n, s.length, s.engine.context, engine.ErrContextFull)
	}
	s.in.layout = s.engine.layout
	if pos := s.in.until(s.length, s.length+n); pos < s.length+n {
		return fmt.Errorf("llamacpp: skip: position %d: %w", pos, engine.ErrNotImported)
	}
	s.length += n
	return nil
}

// Export implements [engine.Sequence]. What was imported is given back from memory, everything else from what the server has written down.
func (s *sequence) Export(pos int, part block.Part, dst []byte) error {
	if err := errors.Join(s.usable("export"), s.checkBlock("export", pos, s.length, part, len(dst))); err != nil {
		return err
	}
	l := s.engine.layout
	for r := range l.Rows(part) {
		if err := s.readRows(r.Layer, r.Which, pos+r.Token, r.Count, dst[r.Offset:][:r.Count*l.RowBytes()]); err != nil {
			return err
		}
	}
	return nil
}

// readRows reads K (which = 0) or V (1) of one layer, positions pos to pos+n-1.
func (s *sequence) readRows(layer, which, pos, n int, dst []byte) error {
	switch {
	case s.out != nil && pos+n <= len(s.out.tokens):
		return s.out.readRows(layer, which, pos, n, dst)
	case s.in.until(pos, pos+n) == pos+n:
		return s.in.readRows(layer, which, pos, dst)
	}
	return fmt.Errorf("llamacpp: K/V at position %d is in the server only", pos)
}

// Close implements [engine.Sequence]. Closing twice is allowed.
func (s *sequence) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.release()
	s.in.blocks = nil
	if s.out == nil {
		return nil
	}
	return s.out.Close()
}
