package redisstore_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// Bulk never delays a poll: with every connection of the data client waiting for a value that does not come, the control client, which has
// connections of its own to the same server, is answered.
func TestBulkNeverDelaysAPoll(t *testing.T) {
	asked := make(chan struct{}, 16)
	url, stop := silentServer(t, "get", asked)
	s := open(t, redisstore.Options{URL: url, PoolSize: 5, Timeout: time.Minute, PoolTimeout: time.Minute})
	control, err := redisstore.Connect(redisstore.Options{URL: url, Role: "control", PoolSize: 1, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var bulk sync.WaitGroup
	for i := range 6 {
		bulk.Go(func() {
			for range s.Get(ctx, []string{fmt.Sprint(i)}, [][]byte{make([]byte, 1<<20+store.Spare)}) {
			}
		})
	}
	for range 4 {
		select {
		case <-asked:
		case <-ctx.Done():
			t.Fatal("no value was asked for")
		}
	}
	// All four connections that reads may take wait now, and two calls for one of them.
	for range 20 {
		if err := control.Ping(ctx).Err(); err != nil {
			t.Fatalf("a poll beside bulk: %v", err)
		}
	}
	if len(asked) != 0 {
		t.Errorf("more connections carry bulk than reads may take")
	}
	cancel()
	stop()
	bulk.Wait()
}

// silentServer answers every command but HELLO with PONG, except the one that it swallows, and says when it has.
func silentServer(t *testing.T, swallow string, asked chan<- struct{}) (url string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				for r := bufio.NewReader(c); ; {
					name, err := readCommand(r)
					if err != nil {
						return
					}
					if name == swallow {
						asked <- struct{}{}
						continue
					}
					answer := "+PONG\r\n"
					if name == "hello" {
						answer = "-ERR unknown command\r\n"
					}
					if _, err := io.WriteString(c, answer); err != nil {
						return
					}
				}
			})
		}
	})
	return "redis://" + l.Addr().String(), func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}
}

// readCommand reads an array of bulk strings and returns the first, in lower case.
func readCommand(r *bufio.Reader) (name string, err error) {
	number := func() int {
		line, e := r.ReadString('\n')
		n, _ := strconv.Atoi(strings.Trim(line, "*$\r\n"))
		err = e
		return n
	}
	for i, n := 0, number(); i < n && err == nil; i++ {
		word := make([]byte, number()+2)
		if err == nil {
			_, err = io.ReadFull(r, word)
		}
		if i == 0 {
			name = strings.ToLower(string(word[:len(word)-2]))
		}
	}
	return name, err
}
