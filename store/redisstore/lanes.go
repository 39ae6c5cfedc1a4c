package redisstore

import (
	"context"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/semaphore"

	"github.com/kvtier/kvtier/store"
)

const (
	// getBytes is how many bytes of small values share one round trip. It only has to hide the round trip: more would make
	// the reader wait for the first value, and large values lose throughput in pipelines.
	getBytes = 1<<20 + 64<<10
	// getsAtOnce is how many round trips of one Get run at once per server, each on its own connection: the server prepares a reply
	// while the client reads another. More add nothing, and the sum of replies must stay small.
	getsAtOnce = 3
	// putBytes is how many bytes of values one pipeline writes. Replies to writes are small, so that a pipeline only has to keep the
	// server from waiting for the next value; two of 4 MiB measured best of 0.5 to 8 MiB times 1 to 3, from 256 KiB to 2 MiB values. The
	// slack is for headers of values whose payload is a power of two.
	putBytes = 4<<20 + 64<<10
	// putsAtOnce is how many pipelines of writes are under way to one server, over all calls.
	putsAtOnce = 2
	// pipelineKeys bounds the commands of one round trip when the values are tiny.
	pipelineKeys = 512

	// defaultInFlight is the default of Options.MaxInFlightBytes.
	defaultInFlight = 6 << 20
)

// lane is the way to one server, with its bound on bytes of values in flight. What is bounded is the server's memory for replies, so
// that each server has a bound of its own, over all calls of this client.
type lane struct {
	max      int // bytes of gets
	putBytes int
	gets     *semaphore.Weighted // bytes
	reading  *semaphore.Weighted // connections of gets: however slow they are, there are some left for questions and writes
	puts     *semaphore.Weighted // pipelines
}

func newLane(maxBytes, poolSize int) *lane {
	return &lane{
		max: maxBytes, putBytes: min(putBytes, maxBytes*(putBytes>>10)/(defaultInFlight>>10)),
		gets: semaphore.NewWeighted(int64(maxBytes)), puts: semaphore.NewWeighted(putsAtOnce),
		reading: semaphore.NewWeighted(int64(readersAtOnce(poolSize))),
	}
}

// readersAtOnce is how many connections of a pool reads may have. The rest is for questions and writes, and shrinks with the pool: reads that go
// one at a time leave the wire idle.
func readersAtOnce(poolSize int) int {
	return max(1, poolSize-min(putsAtOnce+1, poolSize/3))
}

// lanes finds the lane of a key. In a cluster it knows the servers by their clients; a slot that has moved meanwhile is counted
// where it was until the client has learnt better, because the client follows redirections by itself.
type lanes struct {
	max     int
	pool    int     // connections to one server
	all     []*lane // without a cluster: the one
	cluster *redis.ClusterClient
	byNode  sync.Map // *redis.Client → *lane
}

func (l *lanes) init(c redis.UniversalClient, maxBytes, poolSize int) {
	l.max, l.pool = maxBytes, poolSize
	if cl, ok := c.(*redis.ClusterClient); ok {
		l.cluster = cl
		return
	}
	l.all = []*lane{newLane(maxBytes, poolSize)}
}

func (l *lanes) of(ctx context.Context, key string) (*lane, error) {
	node, err := l.cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, err
	}
	if found, ok := l.byNode.Load(node); ok {
		return found.(*lane), nil
	}
	l.forget() // somebody has come: who has left?
	found, _ := l.byNode.LoadOrStore(node, newLane(l.max, l.pool))
	return found.(*lane), nil
}

// forget drops the lanes of nodes that left the cluster.
func (l *lanes) forget() {
	l.byNode.Range(func(node, _ any) bool {
		if isClosed(node.(*redis.Client)) {
			l.byNode.Delete(node)
		}
		return true
	})
}

// carry calls move with weight of the semaphore, unless the store is closed or ctx ends before.
func (s *Store) carry(ctx context.Context, of *semaphore.Weighted, weight int, move func()) error {
	if err := acquire(ctx, of, int64(weight)); err != nil {
		return err
	}
	defer of.Release(int64(weight))
	if err := s.usable(ctx); err != nil { // Acquire may succeed although ctx has ended
		return err
	}
	move()
	return nil
}

// acquire waits for n of sem. If ctx ends before, nothing has been sent.
func acquire(ctx context.Context, sem *semaphore.Weighted, n int64) error {
	if err := sem.Acquire(ctx, n); err != nil {
		return fmt.Errorf("%w: waiting for other calls: %w", store.ErrLate, err)
	}
	return nil
}
