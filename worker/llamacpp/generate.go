package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvtier/kvtier/worker/engine"
)

// Generate implements [engine.Generator]. Behind it the slot is free for others, and keeps what it has for the next sequence that begins alike.
func (s *sequence) Generate(ctx context.Context, tokens []int32, opts engine.GenerateOptions, emit func(engine.Generated) bool) error {
	if err := s.usable("generate"); err != nil {
		return err
	}
	if err := s.check(tokens, opts); err != nil {
		return err
	}
	prompt, err := s.prompt(tokens)
	if err != nil {
		return err
	}
	s.tokens = prompt
	if s.slot == nil {
		scope := s.scope
		if err := s.claim(ctx, func() string { return scope }); err != nil {
			return err
		}
	}
	defer s.release()
	slot := s.slot
	before := min(slot.stored, s.held)
	reuse, err := s.bring(ctx, prompt)
	if err != nil {
		return err
	}
	slot.empty() // until it is known what the server has computed
	r := run{sequence: s, prompt: prompt, opts: opts, emit: emit, reuse: reuse}
	err = r.generate(ctx)
	slot.scope = s.scope
	if err != nil {
		return err
	}
	slot.tokens = r.known()
	if slot.stored = before; before >= s.held {
		slot.stored = min(s.length, len(slot.tokens)) // what was imported is stored
	}
	s.tokens = slot.tokens
	if s.engine.attest(ctx, slot) != nil || slot.reign != s.reign || !s.keep(ctx, opts.MaxTokens == 0) {
		// What the slot held and nobody has exported stays where it is, until it is worth it.
		if before < s.held {
			s.length = before
		}
	}
	return nil
}

func (s *sequence) check(tokens []int32, opts engine.GenerateOptions) error {
	if len(tokens) == 0 {
		return errors.New("llamacpp: generate: no tokens: there is nothing to go on from")
	}
	if free := s.engine.context - s.length; len(tokens) > free || opts.MaxTokens > free-len(tokens) {
		return fmt.Errorf("llamacpp: generate: %d and %d tokens after %d do not fit %d: %w", len(tokens), opts.MaxTokens, s.length, s.engine.context, engine.ErrContextFull)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= s.engine.tokenizer.vocab {
			return fmt.Errorf("llamacpp: generate: token %d at index %d is outside the vocabulary of %d", t, i, s.engine.tokenizer.vocab)
		}
	}
	return nil
}

// prompt is everything from position 0 on, which the server wants to see.
func (s *sequence) prompt(tokens []int32) ([]int32, error) {
	if s.length > len(s.tokens) {
		return nil, fmt.Errorf("llamacpp: generate: the tokens of %d imported positions are not known: call Resume first", s.length)
	}
	return append(s.tokens[:s.length:s.length], tokens...), nil
}

// bring gets the K/V of positions below Len into the slot, if it is not there, and reports whether the server may use what is in the slot. If
// that fails the server computes everything: only a server that does not answer is an error.
func (s *sequence) bring(ctx context.Context, prompt []int32) (reuse bool, err error) {
	e, slot := s.engine, s.slot
	if !s.worthBringing() {
		return s.scope != "" && slot.scope == s.scope, nil
	}
	slot.empty() // a restore that seems to have failed may still replace what is there
	if err := s.restore(ctx, prompt[:s.length]); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		e.stats.failed.Add(1)
		e.opts.Logger.Warn("K/V was not restored, it is computed", "tokens", s.length, "err", err)
		return false, nil
	}
	e.stats.restored.Add(1)
	// Was it this server that has taken it?
	if err := e.attest(ctx, slot); err != nil {
		return false, err
	}
	return slot.reign == s.reign && e.usable(), nil
}

// worthBringing reports whether there is K/V to be put into the slot. A sequence without a scope of its own has been imported for this purpose
// all the same, unless the server is not trusted.
func (s *sequence) worthBringing() bool {
	fresh := s.length - s.held
	if fresh <= 0 || !s.engine.usable() || s.slot.reign != s.reign {
		return false
	}
	return s.held == 0 || fresh >= s.engine.opts.SpliceTokens
}

// restore writes a slot file of the sequence's first tokens and has the server read it. What the slot holds itself is read from it first.
func (s *sequence) restore(ctx context.Context, tokens []int32) error {
	e := s.engine
	w := slotWriter{slotShape: e.shape, tokens: tokens}
	w.rows = func(layer, which int, dst []byte) error { return s.readRows(layer, which, 0, len(tokens), dst) }
	if s.held > 0 && s.in.until(0, s.held) < s.held {
		own, err := e.readSlot(ctx, s.slot.id)
		if err != nil {
			return err
		}
		defer own.Close()
		if len(own.tokens) < s.held || !slices.Equal(own.tokens[:s.held], tokens[:s.held]) || own.slotShape != e.shape {
			return fmt.Errorf("%w: the slot does not hold what it should", ErrSlotFile)
		}
		w.rows = func(layer, which int, dst []byte) error {
			n := s.held * own.row
			if err := own.readRows(layer, which, 0, s.held, dst[:n]); err != nil {
				return err
			}
			return s.readRows(layer, which, s.held, len(tokens)-s.held, dst[n:])
		}
	}
	return e.writeSlot(ctx, s.slot.id, &w)
}

// keep makes what was computed readable for Export, if that is worth its cost: the server writes the whole sequence, not only what is
// new. Who wants nothing but the K/V gets it at any cost. Then Len grows to all of it.
func (s *sequence) keep(ctx context.Context, atAnyCost bool) (kept bool) {
	e, n := s.engine, s.engine.layout.BlockTokens
	full := len(s.tokens) / n * n
	fresh := full - s.slot.stored/n*n
	if s.scope == "" || !e.usable() || fresh < n || fresh < full/e.opts.SaveShare && !atAnyCost || ctx.Err() != nil {
		return false
	}
	out, err := e.readSlot(ctx, s.slot.id)
	if err == nil && (out.slotShape != e.shape || len(out.tokens) < len(s.tokens) || !slices.Equal(out.tokens[:len(s.tokens)], s.tokens)) {
		err = errors.Join(fmt.Errorf("%w: the slot does not hold what it should", ErrSlotFile), out.Close())
	}
	if err != nil {
		e.stats.failed.Add(1)
		e.opts.Logger.Warn("K/V was not read back, it is not shared", "tokens", full, "err", err)
		return false
	}
	e.stats.saved.Add(1)
	s.out, s.length, s.slot.stored, s.in.blocks = out, len(s.tokens), full, nil
	return true
}
