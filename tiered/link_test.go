package tiered_test

import (
	"context"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
)

// slow is a store behind a link of so many bytes per second.
type slow struct {
	store.Store
	bytesPerSecond float64
}

func (s *slow) Put(ctx context.Context, items []store.Item, ttl time.Duration) error {
	sum := 0
	for _, it := range items {
		sum += len(it.Value)
	}
	time.Sleep(time.Duration(float64(sum) / s.bytesPerSecond * float64(time.Second)))
	return s.Store.Put(ctx, items, ttl)
}

// Payloads are encoded where the link is slow, and only there; readers take both, and what they get is what was put.
func TestEncodingIsUsedWhereItPays(t *testing.T) {
	v := shared(generation(1, 1))
	ns, hashes := chainOf(v.Generation, 7, 4)
	write := func(p block.Part, dst []byte) error {
		for i := 0; i < len(dst); i += 2 { // halves of numbers around 1: exponents repeat
			binary.LittleEndian.PutUint16(dst[i:], uint16(0x3c00+i/2*2654435761>>7&0x7ff))
		}
		binary.LittleEndian.PutUint16(dst, uint16(p.Index))
		return nil
	}
	for name, c := range map[string]struct {
		bytesPerSecond float64
		want           bool
	}{"slow": {50e6, true}, "fast": {math.Inf(1), false}} {
		t.Run(name, func(t *testing.T) {
			if raceEnabled && !c.want {
				t.Skip("under the race detector no link is fast")
			}
			remote := memstore.New(memstore.Options{})
			a := newCache(t, &slow{remote, c.bytesPerSecond}, func(o *tiered.Options) { o.Encoding = codec.Planes })
			a.SetView(v)
			for i := range hashes {
				if err := a.Put(v, ns, hashes[:i+1], write); err != nil {
					t.Fatal(err)
				}
				flush(t, a) // a batch each: the first is a measurement
			}
			s := a.Stats()
			if got := s.EncodedBytes > 0; got != c.want {
				t.Errorf("%d of %d bytes encoded", s.EncodedBytes, s.StoredBytes)
			}
			b := newCache(t, remote, nil)
			b.SetView(v)
			pin := b.Load(t.Context(), tiered.Lookup{View: v, Namespace: ns, Chain: hashes})
			defer pin.Release()
			for i := range pin.Blocks() {
				for p := range testLayout.PartCount() {
					want := make([]byte, len(pin.Part(i, p)))
					_ = write(testLayout.Part(p), want)
					if string(want) != string(pin.Part(i, p)) {
						t.Fatalf("block %d part %d differs", i, p)
					}
				}
			}
			if pin.Blocks() != len(hashes) {
				t.Errorf("%d of %d blocks, miss %v", pin.Blocks(), len(hashes), pin.Miss())
			}
		})
	}
}
