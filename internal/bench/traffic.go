package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/rawredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

const (
	// KeyPrefix starts every key that a benchmark writes.
	KeyPrefix = "kvtier-bench:"
	// keyTTL removes what a benchmark that was killed left behind.
	keyTTL = 10 * time.Minute
	// batchBytes is what one call asks for: 512 tokens of an 8B model.
	batchBytes = 64 << 20
	// putBytes is what one put carries: as much as the spill queue hands over at once.
	putBytes = 16 << 20
)

// Traffic is the same work done raw and through the store: the same keys, the same values, the same buffers.
type Traffic struct {
	st     store.Store
	raw    *rawredis.Client
	close  func()
	conns  int
	format *codec.Format
	parts  int // of a value
	batch  int // parts of one call
	ops    int // parts altogether, a multiple of batch
	keys   []string
	heads  []codec.Header
	bufs   [][]byte // one batch of destinations
	frames [][]byte // one batch of values, and two chunks of them at least
	items  []store.Item
	ready  []store.Item // of putSealed
	chunk  int          // parts of one put
	sealed int          // where the chunk begins that is sealed already, in turn 0 and chunk; -1: none yet
	first  int          // its first key
	next   int          // batch to work on
}

// OpenTraffic connects to server and stores up to dataBytes of sealed values there. Close deletes them.
func OpenTraffic(ctx context.Context, server *Server, conns, valueBytes int, dataBytes int64, seed string) (*Traffic, error) {
	t, err := newTraffic(conns, valueBytes, dataBytes, fmt.Sprintf("%s%s:%d:%d:", KeyPrefix, seed, valueBytes, conns))
	if err != nil {
		return nil, err
	}
	st, err := redisstore.Open(redisstore.Options{URL: server.url, PoolSize: conns, Role: "bench", Timeout: 10 * time.Second, PoolTimeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	rawCtx, stop := context.WithCancel(ctx)
	t.st, t.close = st, func() { stop(); _ = st.Close() }
	if t.raw, err = server.raw(rawCtx, conns); err != nil {
		t.close()
		return nil, err
	}
	for from := 0; from < t.ops; from += t.chunk { // a put that does not work shows here, before anything is measured
		n := min(t.chunk, t.ops-from)
		if err := errors.Join(t.seal(0, from, n), t.st.Put(ctx, t.items[:n], keyTTL)); err != nil {
			return nil, errors.Join(err, t.Close(ctx))
		}
	}
	return t, nil
}

// Gets are the ways to read the values: raw with one and with two requests in flight on each connection, the better of which is the
// ceiling (Ceiling), then the store, then the store with every value verified. They come before Puts: what a raw put leaves is not sealed.
func (t *Traffic) Gets() []Method {
	return []Method{{"raw RESP, 1 in flight per connection", t.rawGet(1)}, {"raw RESP, 2 in flight per connection", t.rawGet(2)},
		{"get", t.get}, {"get_verified", t.getVerified}}
}

// Puts are the ways to write them: raw, twice as in Gets, sealed through the store, and through the store what was sealed before.
func (t *Traffic) Puts() []Method {
	return []Method{{"raw RESP, 1 in flight per connection", t.rawPut(1)}, {"raw RESP, 2 in flight per connection", t.rawPut(2)}, {"put", t.put},
		{"put_sealed", t.putSealed}}
}

// Ceiling is the better of the two raw series in the results of Gets or Puts. Neither is better everywhere: two hide the round trip of small
// values, and with large ones their replies add up to what some servers' allocators are slow at.
func Ceiling(all []Series) (inFlight int, raw Series) {
	if all[0].Of(Sample.GBps).Median > all[1].Of(Sample.GBps).Median {
		return 1, all[0]
	}
	return 2, all[1]
}

func newTraffic(conns, valueBytes int, dataBytes int64, prefix string) (*Traffic, error) {
	l, err := LayoutOf(valueBytes)
	if err != nil {
		return nil, err
	}
	f, err := codec.NewFormat(l)
	if err != nil {
		return nil, err
	}
	t := &Traffic{conns: conns, format: f, parts: l.PartCount()}
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
	t.chunk = t.parts * max(1, min(perBatch/2, putBytes/valueBytes)) // whole blocks
	t.items, t.ready, t.sealed = make([]store.Item, 2*t.chunk), make([]store.Item, t.chunk), -1
	for i := range max(t.batch, 2*t.chunk) {
		p := l.Part(i % t.parts)
		if i < t.batch {
			t.bufs = append(t.bufs, make([]byte, f.FrameBytes(p)+store.Spare))
		}
		frame := make([]byte, f.FrameBytes(p))
		FillRandom(f.Payload(frame), uint64(i))
		t.frames = append(t.frames, frame)
	}
	return t, nil
}

// take returns where the next batch begins.
func (t *Traffic) take() int {
	from := t.next
	t.next = (t.next + t.batch) % t.ops
	return from
}

// work is what a batch is.
func (t *Traffic) work() Work {
	l := t.format.Layout()
	return Work{Bytes: int64(t.batch/t.parts) * int64(l.BlockBytes()), Ops: int64(t.batch)}
}

func (t *Traffic) rawGet(inFlight int) func(context.Context) (Work, error) {
	return func(context.Context) (Work, error) {
		from := t.take()
		_, err := t.raw.Get(t.keys[from:from+t.batch], t.bufs, inFlight*t.conns)
		return t.work(), err
	}
}

func (t *Traffic) rawPut(inFlight int) func(context.Context) (Work, error) {
	return func(context.Context) (Work, error) {
		from := t.take()
		return t.work(), t.raw.Put(t.keys[from:from+t.batch], t.frames[:t.batch], keyTTL, inFlight*t.conns)
	}
}

func (t *Traffic) get(ctx context.Context) (Work, error) {
	from := t.take()
	for _, err := range t.st.Get(ctx, t.keys[from:from+t.batch], t.bufs) {
		if err != nil {
			return Work{}, err
		}
	}
	return t.work(), nil
}

// getVerified checks each value as it arrives, while the next one is on its way.
func (t *Traffic) getVerified(ctx context.Context) (Work, error) {
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
	return t.work(), nil
}

// put stores a chunk while the next one is sealed, as the spill queue stores what requests have sealed: one of each in every call.
func (t *Traffic) put(ctx context.Context) (Work, error) {
	if t.sealed < 0 {
		t.sealed = 0
		if err := t.seal(0, t.first, t.chunk); err != nil {
			return Work{}, err
		}
	}
	now, first := t.sealed, (t.first+t.chunk)%t.ops
	if first+t.chunk > t.ops {
		first = 0
	}
	var sealErr error
	var wg sync.WaitGroup
	wg.Go(func() { sealErr = t.seal(t.chunk-now, first, t.chunk) })
	err := t.st.Put(ctx, t.items[now:now+t.chunk], keyTTL)
	wg.Wait()
	t.sealed, t.first = t.chunk-now, first
	l := t.format.Layout()
	return Work{Bytes: int64(t.chunk) * int64(l.BlockBytes()) / int64(t.parts), Ops: int64(t.chunk)}, errors.Join(err, sealErr)
}

// putSealed stores a batch, chunk by chunk, that is sealed already, as the spill queue finds it: a frame is sealed when K/V becomes hot. The
// headers name other keys; nobody reads them any more.
func (t *Traffic) putSealed(ctx context.Context) (Work, error) {
	from := t.take()
	for at := 0; at < t.batch; at += t.chunk {
		n := min(t.chunk, t.batch-at)
		for i := range n {
			t.ready[i] = store.Item{Key: t.keys[from+at+i], Value: t.frames[at+i]}
		}
		if err := t.st.Put(ctx, t.ready[:n], keyTTL); err != nil {
			return Work{}, err
		}
	}
	return t.work(), nil
}

// seal completes n frames from the at-th on as values of n keys from the first on.
func (t *Traffic) seal(at, first, n int) error {
	for i := range n {
		if err := t.format.Seal(t.frames[at+i], t.heads[first+i]); err != nil {
			return err
		}
		t.items[at+i] = store.Item{Key: t.keys[first+i], Value: t.frames[at+i]}
	}
	return nil
}

// Close deletes the values, although ctx may have ended, and disconnects.
func (t *Traffic) Close(ctx context.Context) error {
	defer t.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := t.st.Delete(ctx, t.keys)
	return err
}
