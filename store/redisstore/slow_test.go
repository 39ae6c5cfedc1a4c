package redisstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// stub is a server that greets and then answers every command with an error.
func stub(t *testing.T, text string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					name, err := commandOf(r)
					if err != nil {
						return
					}
					reply := "-" + text + "\r\n"
					if name == "hello" {
						reply = "*2\r\n$5\r\nproto\r\n:2\r\n"
					}
					if _, err := io.WriteString(c, reply); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// behind puts a proxy in front of the shared server.
func behind(t *testing.T) *faultproxy.Proxy {
	t.Helper()
	p, err := faultproxy.Open(faultproxy.Options{Listen: "127.0.0.1:0", Upstream: pool.Get(t).Addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func faults(t *testing.T, p *faultproxy.Proxy, f faultproxy.Faults) {
	t.Helper()
	if err := p.Set(f); err != nil {
		t.Fatal(err)
	}
}

// Behind 200 ms of round trip, questions that may take 350 ms are answered, however many come from the first moment on: connecting is nobody's
// time, and no attempt to connect is lost because nobody waits for it any more.
func TestAColdPoolBehindLatency(t *testing.T) {
	p := behind(t)
	direct := open(t, redisstore.Options{URL: "redis://" + p.Addr()})
	if err := put(t, direct, "a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for _, claims := range []bool{false, true} {
		faults(t, p, faultproxy.Faults{LatencyMS: 200})
		s := open(t, redisstore.Options{URL: "redis://" + p.Addr()})
		b := store.WithBreaker(s, store.BreakerOptions{Faults: 3})
		ask := func(i int) error {
			ctx, cancel := context.WithTimeout(t.Context(), 350*time.Millisecond)
			defer cancel()
			if claims {
				_, err := s.Lease(ctx, fmt.Sprint("l:", i), "", time.Second)
				return err
			}
			_, err := b.Lead(ctx, []string{"a"})
			return err
		}
		// As many at a time as there are connections, without a pause.
		const callers, turns = 6, 10
		var answered, late atomic.Int64
		var last [callers]error
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for j := range turns {
					err := ask(i*turns + j)
					switch {
					case err == nil:
						answered.Add(1)
					case errors.Is(err, store.ErrLate):
						late.Add(1)
					}
					last[i] = err
				}
			})
		}
		wg.Wait()
		t.Logf("claims %v: %d of %d answered, %d late", claims, answered.Load(), callers*turns, late.Load())
		if n := answered.Load(); n < callers*turns*2/3 {
			t.Errorf("claims %v: %d of %d questions were answered", claims, n, callers*turns)
		}
		if b.State() != store.BreakerClosed {
			t.Errorf("the breaker is %v", b.State())
		}
		faults(t, p, faultproxy.Faults{})
	}
}

// A store is warm before it is used, and costs no connection that is not used again.
func TestConnectionsAreOpenedAheadAndKept(t *testing.T) {
	p := behind(t)
	s := open(t, redisstore.Options{URL: "redis://" + p.Addr(), PoolSize: 4})
	for p.Stats().Connections < 4 {
		if t.Context().Err() != nil {
			t.Fatalf("%d connections", p.Stats().Connections)
		}
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		if _, err := s.Lead(t.Context(), []string{"a"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := p.Stats().Connections; n != 4 {
		t.Errorf("%d connections after use, want 4", n)
	}
}

// Clients that hang up on a slow link say nothing about the server, whether they hang up or their time is over while the answer is arriving.
func TestClientsThatHangUpDoNotOpenTheBreaker(t *testing.T) {
	p := behind(t)
	s := open(t, redisstore.Options{URL: "redis://" + p.Addr(), Timeout: 700 * time.Millisecond})
	b := store.WithBreaker(s, store.BreakerOptions{Faults: 1})
	if err := put(t, b, "large", make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	faults(t, p, faultproxy.Faults{BytesPerSecond: 1 << 20})
	read := func(ctx context.Context) (err error) {
		for _, err = range b.Get(ctx, []string{"large"}, [][]byte{make([]byte, 2<<20+store.Spare)}) {
		}
		return err
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrLate) || store.IsFault(err) {
			t.Errorf("a deadline on a slow link: %v", err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := read(ctx); !errors.Is(err, context.Canceled) || store.IsFault(err) {
			t.Errorf("a caller that hung up: %v", err)
		}
	}
	if b.State() != store.BreakerClosed {
		t.Errorf("the breaker is %v", b.State())
	}
	// A server that is silent is another matter: whatever the patience of those who ask, it is known before long.
	faults(t, p, faultproxy.Faults{Blackhole: true})
	for asked := 0; b.State() == store.BreakerClosed; asked++ {
		if asked == 40 {
			t.Fatal("4 s of silence do not open the breaker")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, _ = b.Lead(ctx, []string{"large"})
		cancel()
	}
}

// Waiting for one's own calls is not the server's fault.
func TestWaitingForOthersIsNoFault(t *testing.T) {
	p := behind(t)
	s := open(t, redisstore.Options{URL: "redis://" + p.Addr(), PoolSize: 2, MaxInFlightBytes: 1 << 20, PoolTimeout: 50 * time.Millisecond})
	b := store.WithBreaker(s, store.BreakerOptions{Faults: 1})
	if err := put(t, b, "large", make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	faults(t, p, faultproxy.Faults{BytesPerSecond: 1 << 20})
	buf := func() [][]byte { return [][]byte{make([]byte, 1<<20+store.Spare)} }
	done := make(chan error)
	began := make(chan struct{})
	go func() {
		close(began)
		var err error
		for _, err = range b.Get(t.Context(), []string{"large"}, buf()) {
		}
		done <- err
	}()
	<-began
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		for _, err := range b.Get(ctx, []string{"large"}, buf()) {
			if err == nil || store.IsFault(err) {
				t.Errorf("Get behind another: %v", err)
			}
		}
		cancel()
	}
	if err := <-done; err != nil {
		t.Errorf("the one that was waited for: %v", err)
	}
	if b.State() != store.BreakerClosed {
		t.Errorf("the breaker is %v", b.State())
	}
}
