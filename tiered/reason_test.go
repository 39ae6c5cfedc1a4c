package tiered_test

import (
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// Which field of a header is not the expected one says what happened: a late write of an activation that has ended is a miss like any other;
// only what has no business under its key raises the alarm. Either way the value goes, and nothing of it is used.
func TestWhatAForeignValueMeans(t *testing.T) {
	v := shared(generation(1, 7))
	ns, hashes := chainOf(v.Generation, 7, 1)
	for name, x := range map[string]struct {
		change func(*codec.Header)
		why    tiered.Reason
		alarm  int64
	}{
		"none":    {func(*codec.Header) {}, tiered.MissNone, 0},
		"epoch":   {func(h *codec.Header) { h.Epoch = 6 }, tiered.MissEpoch, 0},
		"act":     {func(h *codec.Header) { h.Act[0] = 1 }, tiered.MissEpoch, 0},
		"weights": {func(h *codec.Header) { h.Identity.Weights[3]++ }, tiered.MissVariant, 1},
		"tenant":  {func(h *codec.Header) { h.Namespace[0]++ }, tiered.MissVariant, 1},
		"hash":    {func(h *codec.Header) { h.Hash[5]++ }, tiered.MissVariant, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := codec.NewFormat(testLayout)
			if err != nil {
				t.Fatal(err)
			}
			remote := memstore.New(memstore.Options{})
			var keys []string
			for p := range testLayout.PartCount() {
				part := testLayout.Part(p)
				frame := make([]byte, f.FrameBytes(part))
				stamp(f.Payload(frame), v.Generation, hashes[0], p)
				h := codec.Header{Identity: v.Identity, Namespace: ns, Epoch: v.Epoch, Hash: hashes[0], Part: p}
				x.change(&h)
				if err := f.Seal(frame, h); err != nil {
					t.Fatal(err)
				}
				keys = append(keys, block.Key(v.Identity.Variant(), v.Epoch, hashes[0], p))
				if err := remote.Put(t.Context(), []store.Item{{Key: keys[p], Value: frame}}, time.Hour); err != nil {
					t.Fatal(err)
				}
			}
			c := newCache(t, remote, nil)
			c.SetView(v)
			remoteBlocks := 0
			if x.why == tiered.MissNone {
				remoteBlocks = 1
			}
			expect(t, c, v, 7, 1, 0, remoteBlocks, x.why)
			s := c.Stats()
			if s.BadValues != x.alarm || x.why != tiered.MissNone && s.MissBlocks[x.why.String()] != 1 {
				t.Errorf("%d failures of integrity, misses %v; want %d and one for %v", s.BadValues, s.MissBlocks, x.alarm, x.why)
			}
			if n, err := remote.Lead(t.Context(), keys); err != nil || (n > 0) != (x.why == tiered.MissNone) {
				t.Errorf("%d parts are left, %v", n, err)
			}
		})
	}
}

// A prompt that fills no block has a reason of its own: nothing was looked for.
func TestAPromptShorterThanABlock(t *testing.T) {
	c := newCache(t, memstore.New(memstore.Options{}), nil)
	v := shared(generation(1, 1))
	c.SetView(v)
	out, err := c.Bring(t.Context(), tiered.Lookup{View: v, Mode: gate.Always}, newSequence(t, testLayout, 0, nil))
	if err != nil || out.Miss != tiered.MissShort || c.Stats().LookupBlocks != 0 {
		t.Errorf("%+v, %v", out, err)
	}
}
