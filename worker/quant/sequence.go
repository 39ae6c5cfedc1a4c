package quant

import (
	"context"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/worker/engine"
)

// sequence turns what passes between an engine's sequence and the cache. One part at a time lies in exact, in the engine's form.
type sequence struct {
	engine.Sequence
	layout    block.Layout
	quantiser *codec.Quantiser
	exact     []byte
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

// Import implements [engine.Sequence]: what the engine gets has been rounded.
func (s *sequence) Import(pos int, part block.Part, kv []byte) error {
	exact, err := s.buffer(part)
	if err != nil {
		return err
	}
	if err := s.quantiser.Dequantise(exact, kv, part); err != nil {
		return err
	}
	return s.Sequence.Import(pos, part, exact)
}

// Export implements [engine.Sequence]. A group of values with an infinity or a NaN comes back as NaNs.
func (s *sequence) Export(pos int, part block.Part, dst []byte) error {
	exact, err := s.buffer(part)
	if err != nil {
		return err
	}
	if err := s.Sequence.Export(pos, part, exact); err != nil {
		return err
	}
	return s.quantiser.Quantise(dst, exact, part)
}

// buffer has the exact bytes of part, which must be one of the layout's.
func (s *sequence) buffer(part block.Part) ([]byte, error) {
	if part.Index < 0 || part.Index >= s.layout.PartCount() || s.layout.Part(part.Index) != part {
		return nil, fmt.Errorf("quant: part %d with layers %d to %d is not one of the layout's", part.Index, part.FirstLayer, part.FirstLayer+part.Layers-1)
	}
	n := s.layout.Exact().PartBytes(part)
	if cap(s.exact) < n {
		s.exact = make([]byte, n)
	}
	return s.exact[:n], nil
}
