package redisstore

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOptionsReportAllProblems(t *testing.T) {
	_, err := Open(Options{
		Mode: Sentinel, Addrs: []string{"", "/sock"}, Username: "u", Role: "a b", PoolSize: -1, DialTimeout: -1, Timeout: -1, PoolTimeout: -1,
		MaxInFlightBytes: -1, TTLJitter: 2,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"Addrs[0]", "Addrs[1]", "MasterName", "Username", "Role", "PoolSize", "DialTimeout", "Timeout", "PoolTimeout",
		"MaxInFlightBytes", "TTLJitter"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if _, err := Open(Options{}); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("Open without an address: %v", err)
	}
	if _, err := Open(Options{URL: "redis://h", Password: "p"}); err == nil || !strings.Contains(err.Error(), "excludes") {
		t.Errorf("Open with URL and Password: %v", err)
	}
}

func TestJittered(t *testing.T) {
	for _, c := range []struct {
		ttl          time.Duration
		part, random float64
		want         time.Duration
	}{
		{time.Second, 0.1, 0, time.Second},
		{time.Second, 0.1, 0.5, 1050 * time.Millisecond},
		{time.Second, -1, 0.5, time.Second},
		{time.Nanosecond, 0.1, 0.5, time.Millisecond},
		{1500*time.Microsecond + 1, 0, 0, 2 * time.Millisecond},
	} {
		if got := jittered(c.ttl, c.part, c.random); got != c.want {
			t.Errorf("jittered(%v, %v, %v) = %v, want %v", c.ttl, c.part, c.random, got, c.want)
		}
	}
	if got := jittered(math.MaxInt64/2, 1, 0.999); got < math.MaxInt64/2 {
		t.Errorf("jittered overflows: %v", got)
	}
}

// spansOf plans a batch for one server.
func spansOf(sizes []int) []span {
	s := &Store{}
	s.lanes.init(nil, 6<<20, 6)
	b := s.newBatch(len(sizes))
	b.keys, b.bufs = make([]string, len(sizes)), make([][]byte, len(sizes))
	for i, n := range sizes {
		b.bufs[i] = make([]byte, n)
	}
	if err := b.plan(context.Background()); err != nil {
		panic(err)
	}
	return b.courses[0].spans
}

func TestSpans(t *testing.T) {
	var got []int
	for _, s := range spansOf([]int{1 << 10, getBytes, 5 << 20, getBytes / 2, getBytes / 2, 1}) {
		got = append(got, s.to)
	}
	if want := []int{1, 2, 3, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("spans end at %v, want %v", got, want)
	}
	// Blocks of Llama-3-8B, and in eight bits: a large part and what is left. Each takes one round trip, as a block in one part did.
	for _, block := range [][]int{{2095104 + 578, 2048 + 578}, {1047552 + 578, 37888 + 578}} {
		if n := len(spansOf(slices.Repeat(block, 5))); n != 5 {
			t.Errorf("%d round trips for 5 blocks of %v bytes, want 5", n, block)
		}
	}
	if n := len(spansOf(make([]int, 2*pipelineKeys))); n != 2 {
		t.Errorf("%d spans of empty values, want 2", n)
	}
}

// The replies that one call may have outstanding at one server never exceed its bound, nor three.
func TestWidthKeepsTheBound(t *testing.T) {
	s := &Store{}
	s.lanes.init(nil, defaultInFlight, 6)
	for size, want := range map[int]int{64 << 10: 3, 1<<20 + 600: 3, 2 << 20: 3, 2<<20 + 600: 2, 4<<20 + 600: 1, 7 << 20: 1} {
		b := s.newBatch(9)
		b.keys, b.bufs = make([]string, 9), make([][]byte, 9)
		for i := range b.bufs {
			b.bufs[i] = make([]byte, size)
		}
		if err := b.plan(context.Background()); err != nil {
			t.Fatal(err)
		}
		c := &b.courses[0]
		got := b.width(c)
		if got != min(want, len(c.spans)) || got > 1 && got*c.spans[0].bytes > defaultInFlight {
			t.Errorf("%d round trips at once for buffers of %d bytes, want %d", got, size, want)
		}
		b.free()
	}
}

func TestTooOld(t *testing.T) {
	for _, c := range []struct {
		product, version string
		want             bool
	}{
		{"redis", "7.0.15", false}, {"redis", "6.2", true}, {"redis", "7.2.0", false}, {"redis", "8.0.2", false}, {"redis", "10", false},
		{"valkey", "7.2.5", true}, {"valkey", "8.0.1", false}, {"valkey", "9.1.0", false}, {"miniredis", "1", false}, {"redis", "", false},
	} {
		if got := (Server{Product: c.product, Version: c.version}).tooOld(); got != c.want {
			t.Errorf("tooOld of %s %s = %v", c.product, c.version, got)
		}
	}
}
