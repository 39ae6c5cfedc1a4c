package coordinator

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/goleak"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/testredis"
)

// pool is the container that the tests of this binary share.
var pool testredis.Pool

func TestMain(m *testing.M) {
	redis.SetLogger(silent{}) // refused connections are what these tests are about
	code := m.Run()
	pool.Close()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println("goleak:", err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// identity returns the n-th weights in the l-th layout.
func identity(n, l byte) block.Identity {
	return block.Identity{Weights: block.Digest{n, 0xaa}, Layout: block.Digest{l, 0xbb}}
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// acts hands out distinct activations, deterministically.
type acts struct {
	mu sync.Mutex
	n  uint64
}

func (a *acts) next() (act Act) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	binary.BigEndian.PutUint64(act[8:], a.n)
	return act
}

func (a *acts) at(now time.Time) Stamp { return Stamp{Now: now, Act: a.next()} }

// stored encodes a record as Redis would hold it.
func stored(t interface {
	Helper()
	Fatalf(string, ...any)
}, r Record) Stored {
	t.Helper()
	raw, err := r.Encode()
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	again, err := DecodeRecord(r.Model, raw)
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	return Stored{Record: again, raw: raw}
}

// must makes a transition that cannot fail.
func must(t interface {
	Helper()
	Fatalf(string, ...any)
}) func(Record, error) Record {
	return func(r Record, err error) Record {
		t.Helper()
		if err != nil {
			t.Fatalf("transition: %v", err)
		}
		return r
	}
}

// server is a miniredis without a network, usable inside a synctest bubble, that can be cut off.
type server struct {
	*miniredis.Miniredis
	mu    sync.Mutex
	down  bool
	conns []net.Conn
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{Miniredis: miniredis.NewMiniRedis()}
	s.ClockTTL(true)
	t.Cleanup(s.Close)
	return s
}

func (s *server) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	c, err := s.Dial()
	s.conns = append(s.conns, c)
	return c, err
}

// cut breaks every connection; while down no new ones are made.
func (s *server) cut(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.conns = nil
}

// control makes a client of its own, so that each caller can be closed by itself.
func (s *server) control(t *testing.T) *Control {
	t.Helper()
	rdb := dialControl(redis.UniversalOptions{Addrs: []string{"miniredis:6379"}, Dialer: s.dial})
	t.Cleanup(func() { _ = rdb.Close() })
	return NewControl(rdb)
}

// prefixed deletes keys of a Redis by prefix, as redisstore does, and can fail.
type prefixed struct {
	rdb redis.UniversalClient

	mu    sync.Mutex
	calls []string
	err   error
}

func (p *prefixed) CountPrefix(ctx context.Context, prefix string) (int, error) {
	keys, err := p.rdb.Keys(ctx, prefix+"*").Result()
	return len(keys), err
}

func (p *prefixed) DeletePrefix(ctx context.Context, prefix string) (int, error) {
	p.mu.Lock()
	p.calls = append(p.calls, prefix)
	err := p.err
	p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	keys, err := p.rdb.Keys(ctx, prefix+"*").Result()
	if err != nil || len(keys) == 0 {
		return 0, err
	}
	n, err := p.rdb.Del(ctx, keys...).Result()
	return int(n), err
}

func (p *prefixed) passes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

func (p *prefixed) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// eventually waits for a condition; inside a bubble it costs no time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// dialControl makes a client with the settings of redisstore.Connect, which this package cannot ask for a dialer of the test's own.
func dialControl(o redis.UniversalOptions) redis.UniversalClient {
	o.ContextTimeoutEnabled = true
	o.MaxRetries, o.DialerRetries = -1, 1
	o.DialTimeout, o.PoolTimeout = 250*time.Millisecond, 250*time.Millisecond
	o.ReadTimeout, o.WriteTimeout = time.Second, time.Second
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewUniversalClient(&o)
}
