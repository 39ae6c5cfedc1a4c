package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/rawredis"
	"github.com/kvtier/kvtier/store"
)

const (
	// KeyPrefix starts every key that a benchmark writes.
	KeyPrefix = "kvtier-bench:"
	// keyTTL removes what a benchmark that was killed left behind.
	keyTTL = 10 * time.Minute
	// rawInFlight is how many requests the raw ceiling keeps on each connection: more add nothing to values of 1 MiB and above.
	rawInFlight = 2
	// batchBytes is what one call asks for: 256 tokens of an 8B model.
	batchBytes = 32 << 20
	// putCallers seal one batch while another is on the wire, as requests and the spill queue do.
	putCallers = 2
)

// traffic is the same work done raw and through the store: the same keys, the same values, the same buffers.
type traffic struct {
	st     store.Store
	raw    *rawredis.Client
	conns  int
	format *codec.Format
	parts  int // of a value
	batch  int // parts of one call
	ops    int // parts altogether, a multiple of batch
	keys   []string
	heads  []codec.Header
	bufs   [][]byte             // one batch of destinations
	frames [putCallers][][]byte // one batch of values each
	items  [putCallers][]store.Item
	next   int // batch to work on
	nextMu sync.Mutex
}

func newTraffic(st store.Store, raw *rawredis.Client, conns, valueBytes int, dataBytes int64, prefix string) (*traffic, error) {
	l, err := LayoutOf(valueBytes)
	if err != nil {
		return nil, err
	}
	f, err := codec.NewFormat(l)
	if err != nil {
		return nil, err
	}
	t := &traffic{st: st, raw: raw, conns: conns, format: f, parts: l.PartCount()}
	perBatch := min(64, max(1, batchBytes/valueBytes))
	for perBatch > 1 && int64(perBatch*valueBytes) > dataBytes {
		perBatch /= 2
	}
	batches := max(1, int(dataBytes/int64(perBatch*valueBytes)))
	t.batch, t.ops = perBatch*t.parts, batches*perBatch*t.parts
	id := block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}
	for i := range t.ops {
		h := codec.Header{Identity: id, Epoch: 1, Part: i % t.parts}
		binary.LittleEndian.PutUint64(h.Hash[:], uint64(i/t.parts))
		t.heads = append(t.heads, h)
		t.keys = append(t.keys, fmt.Sprintf("%s%d", prefix, i))
	}
	for c := range t.items {
		t.items[c] = make([]store.Item, t.batch)
	}
	for i := range t.batch {
		p := l.Part(i % t.parts)
		t.bufs = append(t.bufs, make([]byte, f.FrameBytes(p)+store.Spare))
		for c := range t.frames {
			frame := make([]byte, f.FrameBytes(p))
			fillRandom(f.Payload(frame), uint64(c*t.batch+i))
			t.frames[c] = append(t.frames[c], frame)
		}
	}
	return t, nil
}

// load stores every value, sealed, and thereby shows that a put works before anything is measured.
func (t *traffic) load(ctx context.Context) error {
	for range t.ops / t.batch {
		if err := t.putBatch(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// take returns where the next batch begins.
func (t *traffic) take() int {
	t.nextMu.Lock()
	defer t.nextMu.Unlock()
	from := t.next
	t.next = (t.next + t.batch) % t.ops
	return from
}

// work is what n batches are.
func (t *traffic) work(n int) Work {
	l := t.format.Layout()
	return Work{Bytes: int64(n*t.batch/t.parts) * int64(l.BlockBytes()), Ops: int64(n * t.batch)}
}

func (t *traffic) rawGet(context.Context) (Work, error) {
	from := t.take()
	_, err := t.raw.Get(t.keys[from:from+t.batch], t.bufs, rawInFlight*t.conns)
	return t.work(1), err
}

func (t *traffic) rawPut(context.Context) (Work, error) {
	from := t.take()
	return t.work(1), t.raw.Put(t.keys[from:from+t.batch], t.frames[0], keyTTL, rawInFlight*t.conns)
}

func (t *traffic) get(ctx context.Context) (Work, error) {
	from := t.take()
	for _, err := range t.st.Get(ctx, t.keys[from:from+t.batch], t.bufs) {
		if err != nil {
			return Work{}, err
		}
	}
	return t.work(1), nil
}

// getVerified checks each value as it arrives, while the next one is on its way.
func (t *traffic) getVerified(ctx context.Context) (Work, error) {
	from, i := t.take(), 0
	for n, err := range t.st.Get(ctx, t.keys[from:from+t.batch], t.bufs) {
		if err != nil {
			return Work{}, err
		}
		if _, err := t.format.Open(t.bufs[i][:n], t.heads[from+i]); err != nil {
			return Work{}, err
		}
		i++
	}
	return t.work(1), nil
}

// put stores a batch per caller, all at once.
func (t *traffic) put(ctx context.Context) (Work, error) {
	errs := make([]error, putCallers)
	var wg sync.WaitGroup
	for c := range putCallers {
		wg.Go(func() { errs[c] = t.putBatch(ctx, c) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return Work{}, err
		}
	}
	return t.work(putCallers), nil
}

func (t *traffic) putBatch(ctx context.Context, caller int) error {
	from := t.take()
	items := t.items[caller]
	for i, frame := range t.frames[caller] {
		if err := t.format.Seal(frame, t.heads[from+i]); err != nil {
			return err
		}
		items[i] = store.Item{Key: t.keys[from+i], Value: frame}
	}
	return t.st.Put(ctx, items, keyTTL)
}

// remove deletes the keys although ctx may have ended.
func (t *traffic) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := t.st.Delete(ctx, t.keys)
	return err
}
