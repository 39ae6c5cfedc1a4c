package stalecheck

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/worker/engine"
)

// The smallest layout that has room for the truth: 128 bytes a block.
var layout = block.Layout{DType: block.F16, Order: block.OrderLKTHD, Layers: 1, KVHeads: 1, HeadDim: 16, BlockTokens: 2,
	TPSize: 1, RopeBase: 1, RopeScale: 1, Numerics: "stalecheck/1"}

const (
	payloadBytes = 128
	branches     = 3 // continuations of every prefix
	maxDepth     = 5 // blocks of the longest prompt
	vocab        = 8
)

// node names a prefix of prompts independently of any hash: the path from the root in base 4.
type node uint32

func (n node) child(branch int) node { return n<<2 | node(branch+1) }

// truth writes what a block is: what computed it, for whom, for which prefix. The last 40 bytes depend on all of it, so that no
// change of any byte goes unnoticed.
func truth(dst []byte, weights block.Digest, tenant int, n node, g coordinator.Grant) {
	le := binary.LittleEndian
	copy(dst, weights[:])
	le.PutUint32(dst[32:], uint32(tenant))
	le.PutUint32(dst[36:], uint32(n))
	le.PutUint64(dst[40:], uint64(g.Epoch))
	copy(dst[48:64], g.Act[:])
	x := uint64(n)*0x9e3779b97f4a7c15 ^ uint64(tenant)<<32 ^ uint64(g.Epoch) ^ le.Uint64(weights[:])
	for i := 64; i < payloadBytes; i += 8 {
		x ^= x >> 29
		x *= 0xbf58476d1ce4e5b9
		le.PutUint64(dst[i:], x)
	}
}

// oracle is an engine whose K/V is truth. It belongs to one worker.
type oracle struct {
	w      *member
	id     block.Identity
	closed bool
	open   int // sequences
}

var (
	_ engine.Engine    = (*oracle)(nil)
	_ engine.Sequence  = (*sequence)(nil)
	_ engine.Tokenizer = words{}
)

type words struct{}

func (words) Encode(string) []int32 { return nil }
func (words) Decode([]int32) string { return "" }
func (words) EOS() int32            { return -1 }
func (words) Vocab() int            { return vocab }

func (e *oracle) Layout() block.Layout        { return layout }
func (e *oracle) Identity() block.Identity    { return e.id }
func (e *oracle) Name() string                { return "oracle" }
func (e *oracle) ContextTokens() int          { return maxDepth*layout.BlockTokens + 2 }
func (e *oracle) Tokenizer() engine.Tokenizer { return words{} }

// Close is called by a swap, which must have drained the engine.
func (e *oracle) Close() error {
	e.closed = true
	e.w.world.check(iDrain, e.open == 0, "%d requests run while their weights are closed", e.open)
	return nil
}

// NewSequence begins a request: the one that the world has just sent.
func (e *oracle) NewSequence() (engine.Sequence, error) {
	e.w.world.check(iDrain, !e.closed, "a request runs on closed weights")
	e.open++
	s := &sequence{e: e, req: e.w.world.sending, grant: e.w.held()}
	return s, nil
}

// sequence is one request.
type sequence struct {
	e        *oracle
	req      request
	grant    coordinator.Grant // under which it computes
	len      int
	imported [maxDepth]*coordinator.Grant // under which the K/V of a block was computed, in whatever order they came
	logits   [vocab]float32
}

func (s *sequence) Len() int { return s.len }

func (s *sequence) Prefill(_ context.Context, tokens []int32) ([]float32, error) {
	s.e.w.world.check(iDrain, !s.e.closed, "weights were closed under a running request")
	s.e.w.world.yield()
	s.len += len(tokens)
	return s.logits[:], nil
}

// Import is where K/V reaches the sequence: whose it is is checked here. Nothing looks at it before Skip.
func (s *sequence) Import(pos int, _ block.Part, kv []byte) error {
	w := s.e.w
	before := [payloadBytes]byte{}
	n := copy(before[:], kv)
	grant := w.judge(s, pos, kv)
	if w.world.yield() {
		w.world.check(iStable, len(kv) == payloadBytes && bytes.Equal(kv, before[:n]), "a block of %s changed while it was read", w.name)
	}
	s.imported[pos/layout.BlockTokens] = &grant
	return nil
}

// Skip is where K/V begins to count: that it may be used at this moment, which may be long after Import, is checked here.
func (s *sequence) Skip(n int) error {
	for b := s.len / layout.BlockTokens; b*layout.BlockTokens < s.len+n; b++ {
		grant := s.imported[b]
		if grant == nil {
			return fmt.Errorf("stalecheck: skip from %d to %d over block %d: %w", s.len, s.len+n, b, engine.ErrNotImported)
		}
		s.e.w.usable(s, *grant)
	}
	s.len += n
	return nil
}

func (s *sequence) Export(pos int, _ block.Part, dst []byte) error {
	truth(dst, s.e.id.Weights, s.req.tenant, s.req.path[pos/layout.BlockTokens], s.grant)
	s.e.w.world.yield()
	return nil
}

func (s *sequence) Close() error {
	s.e.open--
	return nil
}

// judge compares a payload that was handed over with what it has to be, and says under which grant it was computed.
func (w *member) judge(s *sequence, pos int, kv []byte) (got coordinator.Grant) {
	world := w.world
	at := s.req.path[pos/layout.BlockTokens]
	if !world.check(iPrefix, len(kv) == payloadBytes, "%s got %d bytes for a block of %d", w.name, len(kv), payloadBytes) {
		return got
	}
	var want [payloadBytes]byte
	le := binary.LittleEndian
	got = coordinator.Grant{Epoch: block.Epoch(le.Uint64(kv[40:])), Act: coordinator.Act(kv[48:64])}
	truth(want[:], s.e.id.Weights, s.req.tenant, at, got)
	world.counts[cBlocks]++
	world.check(iWeights, bytes.Equal(kv[:32], want[:32]), "%s on weights %x got K/V of weights %x", w.name, want[:2], kv[:2])
	world.check(iTenant, bytes.Equal(kv[32:36], want[32:36]), "%s got K/V of tenant %d for tenant %d", w.name, le.Uint32(kv[32:]), s.req.tenant)
	world.check(iPrefix, bytes.Equal(kv[36:], want[36:]), "%s got K/V of prefix %x for prefix %x, or damaged", w.name, le.Uint32(kv[36:]), at)
	return got
}

// usable checks that K/V of an activation may be used by the worker at this moment.
func (w *member) usable(s *sequence, got coordinator.Grant) {
	held, ok := w.grantOf(s.e.id.Variant())
	w.world.check(iRevoked, ok, "%s uses K/V of a variant that its record of generation %d does not grant", w.name, w.watch.View(w.world.now).Gen)
	w.world.check(iActivation, !ok || got == held, "%s holds epoch %d %v and uses K/V of epoch %d %v", w.name, held.Epoch, held.Act, got.Epoch, got.Act)
	state := w.watch.View(w.world.now).State
	w.world.check(iStrict, w.onExpiry == coordinator.Local || state == coordinator.Leased, "%s is strict, %s, and uses K/V", w.name, state)
}

// grantOf is what the record that the replica has acted on last says of a variant; before any record a local worker grants itself.
func (w *member) grantOf(v block.Variant) (coordinator.Grant, bool) {
	if w.seen.State == coordinator.Unsynced {
		return coordinator.Grant{}, w.onExpiry == coordinator.Local
	}
	return w.seen.Grant(v)
}

// held is the grant of the resident variant, zero without one.
func (w *member) held() coordinator.Grant {
	g, _ := w.grantOf(w.resident())
	return g
}
