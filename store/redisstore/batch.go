package redisstore

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// batch is the bookkeeping of one Get or Put: which keys travel together, over which lane, and what became of them. Batches are
// reused: in steady state a value costs the client's command and nothing of ours.
type batch struct {
	s      *Store
	home   *sync.Pool // where it goes when it is free
	client redis.UniversalClient
	keys   []string
	bufs   [][]byte     // of a Get
	items  []store.Item // of a Put
	ttlMS  int64

	order   []int32 // positions of keys, lane by lane
	courses []course
	results []result // each belongs to whoever moves its span, until it is done
	args    []any    // of the commands, argsPerKey for each key
	values  []payload
	scratch []byte // of an attempt of a hedged read: what bufs are cut from
	wg      sync.WaitGroup
	stopped atomic.Bool

	mu   sync.Mutex
	done []bool    // for each key, whether its result is final
	cond sync.Cond // signals a change of done
}

// result is what became of one key.
type result struct {
	n   int
	err error
}

// course is one lane's share of a batch.
type course struct {
	lane    *lane
	spans   []span
	next    atomic.Int64
	refused atomic.Pointer[error] // why a Put sends no more there
}

// span is a run of positions that travel together.
type span struct {
	from, to int // batch.order[from:to]
	bytes    int
}

// argsPerKey is the longest command: SET key value PX milliseconds.
const argsPerKey = 5

// payload is a value as the client's writer takes it without boxing a slice: a pointer to it fits an interface.
type payload []byte

// MarshalBinary returns the value itself.
func (p *payload) MarshalBinary() ([]byte, error) { return *p, nil }

func (s *Store) newBatch(n int) *batch { return s.batchFrom(&s.batches, n) }

func (s *Store) batchFrom(home *sync.Pool, n int) *batch {
	b, _ := home.Get().(*batch)
	if b == nil {
		b = new(batch)
		b.cond.L = &b.mu
	}
	b.s, b.home, b.client = s, home, s.client
	b.order = grow(b.order, n)
	b.results = grow(b.results, n)
	b.done = grow(b.done, n)
	b.args = grow(b.args, n*argsPerKey)
	b.values = grow(b.values, n)
	b.courses = b.courses[:0]
	b.stopped.Store(false)
	return b
}

// free drops everything that belongs to the caller and keeps the rest for the next batch. Nothing of b is running any more.
func (b *batch) free() {
	const keepKeys = 4096 // a batch of a freak size is left to the collector
	if cap(b.results) > keepKeys {
		return
	}
	b.keys, b.bufs, b.items = nil, nil, nil
	clear(b.results)
	clear(b.done)
	clear(b.args)
	clear(b.values)
	b.home.Put(b)
}

func grow[T any](v []T, n int) []T {
	if cap(v) < n {
		return make([]T, n)
	}
	return v[:n]
}

// size is what key i adds to what is in flight.
func (b *batch) size(i int32) int {
	if b.items != nil {
		return len(b.items[i].Key) + len(b.items[i].Value)
	}
	return len(b.bufs[i])
}

func (b *batch) key(i int32) *string {
	if b.items != nil {
		return &b.items[i].Key
	}
	return &b.keys[i]
}

// plan groups the keys by lane, in their order within each, and cuts each lane's into spans of at most getBytes or putBytes; a larger
// value travels alone. The error is that of a cluster whose state cannot be had.
func (b *batch) plan(ctx context.Context) error {
	n := len(b.results)
	lanes := b.s.lanes.all
	if b.s.lanes.cluster == nil {
		b.course(lanes[0])
		for i := range n {
			b.order[i] = int32(i)
		}
		b.cut(0, 0, n)
		return nil
	}
	of := make([]*lane, n)
	for i := range n {
		l, err := b.s.lanes.of(ctx, *b.key(int32(i)))
		if err != nil {
			return err
		}
		of[i] = l
	}
	at := 0
	for i, l := range of {
		if l == nil {
			continue
		}
		from, c := at, b.course(l)
		for j := i; j < n; j++ {
			if of[j] == l {
				b.order[at], of[j] = int32(j), nil
				at++
			}
		}
		b.cut(c, from, at)
	}
	return nil
}

// course begins the share of l and returns its index.
func (b *batch) course(l *lane) int {
	i := len(b.courses)
	if i < cap(b.courses) {
		b.courses = b.courses[:i+1]
	} else {
		b.courses = append(b.courses, course{})
	}
	c := &b.courses[i]
	c.lane, c.spans = l, c.spans[:0]
	c.next.Store(0)
	c.refused.Store(nil)
	return i
}

func (b *batch) cut(c, from, to int) {
	limit := getBytes
	if b.items != nil {
		limit = b.courses[c].lane.putBytes
	}
	for i := from; i < to; {
		sp := span{from: i, to: i + 1, bytes: b.size(b.order[i])}
		limit := max(limit, sp.bytes+sp.bytes/24) // what is small next to it, as the last part of a block, needs no round trip of its own
		for sp.to < to && sp.to-sp.from < pipelineKeys {
			more := b.size(b.order[sp.to])
			if sp.bytes+more > limit {
				break
			}
			sp.bytes += more
			sp.to++
		}
		b.courses[c].spans = append(b.courses[c].spans, sp)
		i = sp.to
	}
}

// alone reports whether one round trip carries everything.
func (b *batch) alone() bool { return len(b.courses) == 1 && len(b.courses[0].spans) == 1 }

// launch begins to move all spans in the background, a few of each lane at once, in order. What has not begun when ctx ends still gets
// its result: the error.
func (b *batch) launch(ctx context.Context, move func(*batch, context.Context, *course, span)) {
	for i := range b.courses {
		c := &b.courses[i]
		for range b.width(c) {
			b.wg.Go(func() {
				for {
					i := int(c.next.Add(1)) - 1
					if i >= len(c.spans) || b.stopped.Load() {
						return
					}
					move(b, ctx, c, c.spans[i])
					b.finished(c.spans[i])
				}
			})
		}
	}
}

// width is how many round trips of c run at once: as many as fit the lane's bound, since one more would only wait for it.
func (b *batch) width(c *course) int {
	if b.items != nil {
		return min(putsAtOnce, len(c.spans))
	}
	widest := 1
	for _, sp := range c.spans {
		widest = max(widest, sp.bytes)
	}
	return min(getsAtOnce, len(c.spans), max(1, c.lane.max/widest))
}

func (b *batch) finished(sp span) {
	b.mu.Lock()
	for _, i := range b.order[sp.from:sp.to] {
		b.done[i] = true
	}
	b.mu.Unlock()
	b.cond.Broadcast()
}

// await returns what became of key i.
func (b *batch) await(i int) result {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.done[i] {
		b.cond.Wait()
	}
	return b.results[i]
}

// stop prevents what has not begun and waits for what has: afterwards nobody touches the caller's memory.
func (b *batch) stop(cancel context.CancelFunc) {
	b.stopped.Store(true)
	cancel()
	b.wg.Wait()
}

// fail gives err to every key of sp.
func (b *batch) fail(ctx context.Context, op string, sp span, err error) {
	for _, i := range b.order[sp.from:sp.to] {
		b.results[i].err = wrap(ctx, op, *b.key(i), b.s.blame(ctx, *b.key(i), err))
	}
}

// getCommand makes the command that reads key i into its buffer.
func (b *batch) getCommand(i int32) *redis.ZeroCopyStringCmd {
	args := b.args[i*argsPerKey:][:2:2]
	args[0], args[1] = "get", b.key(i)
	return redis.NewZeroCopyStringCmd(background, b.bufs[i], args...)
}

// setCommand makes the command that stores item i.
func (b *batch) setCommand(i int32) *redis.StatusCmd {
	args := b.args[i*argsPerKey:][:5:5]
	b.values[i] = b.items[i].Value
	args[0], args[1], args[2], args[3], args[4] = "set", b.key(i), &b.values[i], "px", &b.ttlMS
	return redis.NewStatusCmd(background, args...)
}

// background is the context inside commands, which only hooks read; each call is given its own.
var background = context.Background()
