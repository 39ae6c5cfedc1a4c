package redisstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/pause"
	"github.com/kvtier/kvtier/store"
)

const (
	// pauseFactor is how long a sweep rests after a step, in multiples of the time that the step took: it uses at most a fifth
	// of the server.
	pauseFactor = 4
	// A step is to hold up the server for a tenth of a millisecond: that is what a request waits that meets one. sweepNames is how many names
	// one SCAN looks at, about a microsecond each; sweepBytes, with deleteKeys, bounds the values freed by one batch, because UNLINK frees
	// strings on the main thread, in 1 µs and up to 27 µs for each MiB.
	sweepNames = 128
	sweepBytes = 4 << 20
)

var _ store.Sweeper = (*Store)(nil)

// Sweep implements store.Sweeper with SCAN, STRLEN and UNLINK on every master, several masters at a time. One SCAN serves all prefixes: the
// server filters by what they have in common, the client by the rest. Cursors of SCAN stay valid however long the pause, so that
// a pass that was broken off is resumed; it starts anew at a server that was not there before, as after a failover or a restart: cursors mean
// something to the server process only that gave them.
func (s *Store) Sweep(ctx context.Context, prefixes []string, from store.Sweep, progress func(store.Sweep) error) (store.Sweep, error) {
	if slices.Contains(prefixes, "") {
		return from, &opError{"sweep", "", fmt.Errorf("%w: empty prefix", store.ErrInvalid)}
	}
	if len(prefixes) == 0 {
		return from, s.usable(ctx)
	}
	return s.sweep(ctx, "sweep", prefixes, from, progress)
}

func (s *Store) sweep(ctx context.Context, op string, prefixes []string, from store.Sweep, progress func(store.Sweep) error) (store.Sweep, error) {
	w := sweeper{op: op, blame: s.blame, common: commonPrefix(prefixes), progress: progress, prefixes: map[int]map[string]bool{}, done: from}
	w.done.Cursors = maps.Clone(from.Cursors)
	if w.done.Cursors == nil {
		w.done.Cursors = map[string]uint64{}
	}
	for _, p := range prefixes {
		if w.prefixes[len(p)] == nil {
			w.prefixes[len(p)] = map[string]bool{}
		}
		w.prefixes[len(p)][p] = true
	}
	if err := s.usable(ctx); err != nil {
		return from, &opError{op, w.common, err}
	}
	w.done.Nodes, w.seen = 0, map[string]bool{}
	err := s.eachMaster(ctx, w.node)
	if err == nil {
		maps.DeleteFunc(w.done.Cursors, func(server string, _ uint64) bool { return !w.seen[server] })
	}
	if _, named := errors.AsType[*opError](err); err != nil && !named && w.stopped == nil {
		err = wrap(ctx, op, w.common, err)
	}
	return w.done, err
}

// sweeper is one pass.
type sweeper struct {
	op       string
	blame    func(context.Context, string, error) error
	common   string
	prefixes map[int]map[string]bool // by length
	progress func(store.Sweep) error

	mu      sync.Mutex // masters are swept side by side
	done    store.Sweep
	seen    map[string]bool // servers of this pass
	stopped error           // what progress said
}

// node sweeps one master, from where the pass was there.
func (w *sweeper) node(ctx context.Context, client *redis.Client) error {
	c := client.Conn() // which ends with the server: a client of sentinels goes on with another one
	defer c.Close()
	server, err := processOf(ctx, c, client.Options().Addr)
	if err != nil {
		return err
	}
	w.mu.Lock()
	cursor, begun := w.done.Cursors[server]
	w.seen[server] = true
	if begun && cursor == 0 {
		w.done.Nodes++
	}
	w.mu.Unlock()
	if begun && cursor == 0 {
		return nil // done before the pass was broken off
	}
	match := escapeGlob(w.common) + "*"
	for {
		begin := time.Now()
		keys, next, err := c.Scan(ctx, cursor, match, sweepNames).Result()
		if err != nil {
			return err
		}
		if err := pause.For(ctx, pauseFactor*time.Since(begin)); err != nil {
			return err
		}
		keys = slices.DeleteFunc(keys, func(k string) bool { return !w.dead(k) })
		deleted, freed, err := w.remove(ctx, c, keys)
		w.mu.Lock()
		w.done.Deleted += int64(deleted)
		w.done.Bytes += freed
		if err != nil {
			w.mu.Unlock()
			return err // the cursor stays: this part is looked at once more
		}
		w.done.Scanned += sweepNames
		w.done.Cursors[server] = next
		if next == 0 {
			w.done.Nodes++
		}
		if w.progress != nil && w.stopped == nil {
			seen := w.done
			seen.Cursors = maps.Clone(seen.Cursors)
			w.stopped = w.progress(seen)
		}
		err = w.stopped
		w.mu.Unlock()
		if err != nil || next == 0 {
			return err
		}
		cursor = next
	}
}

// processOf returns what names the server process at the other end of c: its address and run id, or the address alone if it may not be asked.
func processOf(ctx context.Context, c *redis.Conn, addr string) (string, error) {
	info, err := c.Info(ctx, "server").Result()
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return "", err
	}
	for line := range strings.Lines(info) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); ok {
			return addr + " " + id, nil
		}
	}
	return addr, nil
}

// dead reports whether a key starts with one of the prefixes.
func (w *sweeper) dead(key string) bool {
	for n, set := range w.prefixes {
		if len(key) >= n && set[key[:n]] {
			return true
		}
	}
	return false
}

// remove deletes keys in batches of at most deleteKeys keys and sweepBytes bytes, or of one key, with a pause after each.
func (w *sweeper) remove(ctx context.Context, c redis.Cmdable, keys []string) (deleted int, freed int64, err error) {
	for chunk := range slices.Chunk(keys, deleteKeys) {
		begin := time.Now()
		sizes, err := sizesOf(ctx, c, chunk)
		if err != nil {
			return deleted, freed, err
		}
		for len(chunk) > 0 {
			n, bytes := 0, int64(0)
			for n < len(chunk) && (n == 0 || bytes+sizes[n] <= sweepBytes) {
				bytes += sizes[n]
				n++
			}
			d, err := unlink(ctx, c, w.op, chunk[:n], w.blame)
			deleted += d
			if err != nil {
				return deleted, freed, err
			}
			freed += bytes
			if err := pause.For(ctx, pauseFactor*time.Since(begin)); err != nil {
				return deleted, freed, err
			}
			chunk, sizes, begin = chunk[n:], sizes[n:], time.Now()
		}
	}
	return deleted, freed, nil
}

// sizesOf asks for the sizes of values. What is no string, and so none of ours, counts as nothing.
func sizesOf(ctx context.Context, c redis.Cmdable, keys []string) ([]int64, error) {
	pipe := c.Pipeline()
	for _, k := range keys {
		pipe.StrLen(ctx, k)
	}
	cmds, err := pipe.Exec(ctx)
	if _, refused := errors.AsType[redis.Error](err); err != nil && !refused {
		return nil, err
	}
	sizes := make([]int64, len(keys))
	for i, cmd := range cmds {
		sizes[i] = cmd.(*redis.IntCmd).Val()
	}
	return sizes, nil
}

func commonPrefix(prefixes []string) string {
	common := prefixes[0]
	for _, p := range prefixes[1:] {
		n := 0
		for n < len(common) && n < len(p) && common[n] == p[n] {
			n++
		}
		common = common[:n]
	}
	return common
}
