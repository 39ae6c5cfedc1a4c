package quant

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/worker/engine"
)

// sequence turns what passes between an engine's sequence and the cache: whole blocks, because the parts of the two forms end at
// different places, and those of the cached one within groups of values that share a scale.
type sequence struct {
	engine.Sequence
	layout    block.Layout
	context   int
	quantiser *codec.Quantiser
	closed    bool

	exact    []byte            // a block in the engine's form
	arriving map[int]*arriving // blocks by position of which parts have been imported, but not all
	leaving  []byte            // the block in the cached form that parts are exported of
	from     int               // where it begins, -1 if there is none
}

// arriving is a block that is being imported.
type arriving struct {
	kv      []byte
	have    []bool // parts
	missing int
}

// generating is a sequence whose engine samples by itself.
type generating struct {
	*sequence
	engine.Generator
}

var (
	_ engine.Sequence  = (*sequence)(nil)
	_ engine.Resumer   = (*sequence)(nil)
	_ engine.Generator = (*generating)(nil)
)

// Resume implements [engine.Resumer]: what the engine has kept is as exact as what it would compute. An engine that keeps nothing goes on from
// nothing.
func (s *sequence) Resume(ctx context.Context, tokens []int32, scope func() string) (int, error) {
	if r, ok := s.Sequence.(engine.Resumer); ok {
		return r.Resume(ctx, tokens, scope)
	}
	return 0, nil
}

func (s *sequence) within() engine.Sequence { return s.Sequence }

// Import implements [engine.Sequence]: what the engine gets has been rounded. It gets a block when all of its parts are there.
func (s *sequence) Import(pos int, part block.Part, kv []byte) error {
	if err := s.check("import", pos, s.context, part, len(kv)); err != nil {
		return err
	}
	b := s.arriving[pos]
	if b == nil {
		n := s.layout.PartCount()
		if n == 1 {
			return s.place(pos, kv)
		}
		b = &arriving{kv: make([]byte, s.layout.BlockBytes()), have: make([]bool, n), missing: n}
		s.arriving[pos] = b
	}
	copy(b.kv[part.Offset:], kv)
	if !b.have[part.Index] {
		b.have[part.Index] = true
		b.missing--
	}
	if b.missing > 0 {
		return nil
	}
	delete(s.arriving, pos)
	return s.place(pos, b.kv)
}

// place hands a whole block to the engine.
func (s *sequence) place(pos int, kv []byte) error {
	if err := s.quantiser.Dequantise(s.block(), kv); err != nil {
		return err
	}
	for _, p := range s.layout.Exact().Parts() {
		if err := s.Sequence.Import(pos, p, s.exact[p.Offset:p.End()]); err != nil {
			return err
		}
	}
	return nil
}

// Export implements [engine.Sequence]. A group of values with an infinity or a NaN comes back as NaNs.
func (s *sequence) Export(pos int, part block.Part, dst []byte) error {
	if err := s.check("export", pos, s.Len(), part, len(dst)); err != nil {
		return err
	}
	if s.layout.PartCount() == 1 {
		return s.take(pos, dst)
	}
	if s.from != pos || part.Index == 0 { // what is below Len does not change
		if s.leaving == nil {
			s.leaving = make([]byte, s.layout.BlockBytes())
		}
		s.from = -1
		if err := s.take(pos, s.leaving); err != nil {
			return err
		}
		s.from = pos
	}
	copy(dst, s.leaving[part.Offset:])
	return nil
}

// take gets a whole block from the engine.
func (s *sequence) take(pos int, dst []byte) error {
	exact := s.block()
	for _, p := range s.layout.Exact().Parts() {
		if err := s.Sequence.Export(pos, p, exact[p.Offset:p.End()]); err != nil {
			return err
		}
	}
	return s.quantiser.Quantise(dst, exact)
}

// Close implements [engine.Sequence].
func (s *sequence) Close() error {
	s.closed = true
	return s.Sequence.Close()
}

// block is memory for a block in the engine's form.
func (s *sequence) block() []byte {
	if s.exact == nil {
		s.exact = make([]byte, s.layout.Exact().BlockBytes())
	}
	return s.exact
}

// check refuses what the engine within would: it may see the block only later.
func (s *sequence) check(op string, pos, limit int, part block.Part, bytes int) error {
	l := s.layout
	switch n := l.PartCount(); {
	case s.closed:
		return fmt.Errorf("quant: %s: %w", op, engine.ErrClosed)
	case pos < 0 || pos > limit-l.BlockTokens:
		return fmt.Errorf("quant: %s: a block of %d tokens at position %d is outside 0 to %d", op, l.BlockTokens, pos, limit)
	case part.Index < 0 || part.Index >= n || l.Part(part.Index) != part:
		return fmt.Errorf("quant: %s: part %d with bytes %d to %d is not one of the layout's %d parts", op, part.Index, part.Offset, part.End(), n)
	case bytes != part.Bytes:
		return fmt.Errorf("quant: %s: part %d has %d bytes, want %d", op, part.Index, bytes, part.Bytes)
	}
	return nil
}
