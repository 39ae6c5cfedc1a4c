package llamacpp

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// canaryTokens is the length of the prompt that every server computes once. Its K and V in all layers depend on the weights (but for the
// last layer's feed-forward and the output matrix), on rope, on the batch size and on the processor's kernels.
const canaryTokens = 64

// errUnsettled means that a server computes different K/V for the same prompt.
var errUnsettled = errors.New("llamacpp: the server does not compute the same K/V twice: is it in use by others?")

// canary computes the fixed prompt in a slot and returns the shape of slot files and the digest of K and V.
func (e *Engine) canary(ctx context.Context, slot int) (slotShape, block.Digest, error) {
	tokens := make([]int32, min(canaryTokens, e.context-1))
	for i := range tokens {
		tokens[i] = int32(7*i+3) % int32(e.tokenizer.vocab)
	}
	req := newCompletion(tokens, engine.GenerateOptions{})
	req.Slot = slot
	if err := e.client.complete(ctx, req, func(*event) bool { return true }); err != nil {
		return slotShape{}, block.Digest{}, err
	}
	f, err := e.readSlot(ctx, slot)
	if err != nil {
		return slotShape{}, block.Digest{}, err
	}
	defer f.Close()
	if !slices.Equal(f.tokens, tokens) {
		return slotShape{}, block.Digest{}, fmt.Errorf("%w: it holds other tokens than the server was asked to compute", ErrSlotFile)
	}
	sum, rows := sha256.New(), make([]byte, len(tokens)*f.row)
	for layer := range f.layers {
		for which := range 2 {
			if err := f.readRows(layer, which, 0, len(tokens), rows); err != nil {
				return slotShape{}, block.Digest{}, err
			}
			sum.Write(rows)
		}
	}
	return f.slotShape, block.Digest(sum.Sum(nil)), nil
}

// settle repeats the canary until it comes out the same twice in a row.
func (e *Engine) settle(ctx context.Context, slot int) (slotShape, block.Digest, error) {
	var last block.Digest
	for range 5 {
		shape, sum, err := e.canary(ctx, slot)
		if err != nil || sum == last {
			return shape, sum, err
		}
		last = sum
	}
	return slotShape{}, block.Digest{}, errUnsettled
}
