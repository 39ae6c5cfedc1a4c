package redisstore_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// holder is a server that answers no GET before told to, and counts the connections that wait for one.
type holder struct {
	addr    string
	waiting atomic.Int64
	gets    atomic.Int64 // commands
	more    chan struct{}
	release chan struct{}
}

func hold(t *testing.T) *holder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{addr: l.Addr().String(), more: make(chan struct{}, 1<<10), release: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				h.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return h
}

func (h *holder) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		name, err := commandOf(r)
		if err != nil {
			return
		}
		reply := "+PONG\r\n"
		switch name {
		case "hello":
			reply = "*2\r\n$5\r\nproto\r\n:2\r\n"
		case "get":
			h.gets.Add(1)
			if r.Buffered() == 0 { // the last of a pipeline
				h.waiting.Add(1)
				h.more <- struct{}{}
				<-h.release
			}
			reply = "$1\r\nx\r\n"
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
	}
}

// Reads use most of a pool, however small it is, and leave some of a large one to questions and writes.
func TestReadersAtOnce(t *testing.T) {
	for pool, want := range map[int]int64{1: 1, 2: 2, 3: 2, 4: 3, 6: 4, 12: 9} {
		t.Run(fmt.Sprint(pool), func(t *testing.T) {
			h := hold(t)
			s := open(t, redisstore.Options{URL: "redis://" + h.addr, PoolSize: pool, PoolTimeout: 0})
			var all sync.WaitGroup
			for i := range 16 {
				all.Go(func() {
					for _, err := range s.Get(t.Context(), []string{fmt.Sprint(i)}, [][]byte{make([]byte, 64<<10)}) {
						if err != nil {
							t.Errorf("Get: %v", err)
						}
					}
				})
			}
			for range want {
				<-h.more
			}
			// A question or a write goes through although all readers wait, if the pool is large enough to keep some connections for them.
			if pool > 2 {
				if err := s.Ping(t.Context()); err != nil {
					t.Errorf("Ping while reads wait: %v", err)
				}
			}
			if n := h.waiting.Load(); n != want {
				t.Errorf("%d readers at once, want %d", n, want)
			}
			close(h.release)
			all.Wait()
		})
	}
}

// Small values share round trips, so that few of them do not each wait for the server; a large one has its own.
func TestValuesPerRoundTrip(t *testing.T) {
	for _, c := range []struct{ bytes, values, want int }{{32 << 10, 64, 3}, {256 << 10, 24, 3}, {2<<20 + 320, 2, 2}} {
		h := hold(t)
		s := open(t, redisstore.Options{URL: "redis://" + h.addr})
		keys, bufs := make([]string, c.values), make([][]byte, c.values)
		for i := range keys {
			keys[i], bufs[i] = fmt.Sprint(i), make([]byte, c.bytes+store.Spare)
		}
		close(h.release)
		for _, err := range s.Get(t.Context(), keys, bufs) {
			if err != nil {
				t.Fatal(err)
			}
		}
		trips := int(h.waiting.Load())
		t.Logf("%d values of %d KiB in %d round trips", c.values, c.bytes>>10, trips)
		if trips > c.values/2 && c.values > 2 {
			t.Errorf("%d values of %d KiB took %d round trips", c.values, c.bytes>>10, trips)
		}
		if int(h.gets.Load()) != c.values {
			t.Errorf("%d GETs for %d values", h.gets.Load(), c.values)
		}
	}
}
