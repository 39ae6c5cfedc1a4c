package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kvtier/kvtier/internal/bench"
)

// contender is one way to keep values in Redis, as its documentation shows it. Options are its defaults but for the number of
// connections, which is the same for all.
type contender struct {
	name, library string
	putName       string                                                    // of the row about writing, when put is not nil
	put           func(ctx context.Context, key string, value []byte) error // nil: only a way to read
	// get reads one value and returns how many bytes of payload it found; getMany reads several in one request. One of them is set.
	get     func(ctx context.Context, worker int, key string) (int, error)
	getMany func(ctx context.Context, keys []string) (int, error)
	like    string // reads the values of this contender, when put is nil
	close   func()
}

// values is what every contender stores: incompressible, and distinct.
type values struct {
	payload [][]byte
	keys    int
	bytes   int
}

func newValues(valueBytes int, dataBytes int64) values {
	v := values{bytes: valueBytes, keys: max(batchKeys, int(dataBytes/int64(valueBytes))/batchKeys*batchKeys)}
	for i := range batchKeys { // a batch of different ones; more would only cost this process memory
		p := make([]byte, valueBytes)
		bench.FillRandom(p, uint64(i))
		v.payload = append(v.payload, p)
	}
	return v
}

func (v values) of(i int) []byte { return v.payload[i%len(v.payload)] }

// batchKeys is how many values one call of a method moves per connection at least, and what MGET asks for at once.
const batchKeys = 16

// runner drives contenders with as many goroutines as connections.
type runner struct {
	v     values
	conns int
	seed  string
}

func newRunner(v values, conns int, seed string) *runner {
	return &runner{v: v, conns: conns, seed: seed}
}

func (r *runner) key(c *contender, i int) string {
	space := c.name
	if c.like != "" {
		space = c.like
	}
	return fmt.Sprintf("%srivals:%s:%s:%d", bench.KeyPrefix, r.seed, strings.ReplaceAll(space, " ", "-"), i%r.v.keys)
}

// keysOf are all keys that a contender writes.
func (r *runner) keysOf(c *contender) (keys []string) {
	for i := range r.v.keys {
		keys = append(keys, r.key(c, i))
	}
	return keys
}

// load stores every value in the contender's own form.
func (r *runner) load(ctx context.Context, c *contender) error {
	if c.put == nil {
		return nil
	}
	for i := range r.v.keys {
		if err := c.put(ctx, r.key(c, i), r.v.of(i)); err != nil {
			return fmt.Errorf("%s: load: %w", c.name, err)
		}
	}
	return nil
}

func (r *runner) gets(c *contender) bench.Method {
	return bench.Method{Name: c.name, Do: r.batch(c, func(ctx context.Context, worker int, keys []string, _ int) error {
		if c.getMany != nil {
			n, err := c.getMany(ctx, keys)
			return r.check(n, len(keys), err)
		}
		for _, k := range keys {
			n, err := c.get(ctx, worker, k)
			if err := r.check(n, 1, err); err != nil {
				return err
			}
		}
		return nil
	})}
}

func (r *runner) puts(c *contender) bench.Method {
	return bench.Method{Name: c.putName, Do: r.batch(c, func(ctx context.Context, _ int, keys []string, first int) error {
		for i, k := range keys {
			if err := c.put(ctx, k, r.v.of(first+i)); err != nil {
				return err
			}
		}
		return nil
	})}
}

func (r *runner) check(got, values int, err error) error {
	if err == nil && got != values*r.v.bytes {
		err = fmt.Errorf("%d bytes instead of %d", got, values*r.v.bytes)
	}
	return err
}

// batch has every worker move batchKeys values.
func (r *runner) batch(c *contender, do func(ctx context.Context, worker int, keys []string, first int) error) func(context.Context) (bench.Work, error) {
	all := r.keysOf(c)
	next := new(atomic.Int64)
	return func(ctx context.Context) (bench.Work, error) {
		errs := make([]error, r.conns)
		var wg sync.WaitGroup
		for w := range r.conns {
			wg.Go(func() {
				first := int(next.Add(batchKeys)-batchKeys) % r.v.keys
				errs[w] = do(ctx, w, all[first:first+batchKeys], first)
			})
		}
		wg.Wait()
		ops := int64(r.conns * batchKeys)
		return bench.Work{Bytes: ops * int64(r.v.bytes), Ops: ops}, errors.Join(errs...)
	}
}
