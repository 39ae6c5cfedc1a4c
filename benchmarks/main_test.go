package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/internal/bench"
)

func TestWrongUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no server":    {nil, "--redis"},
		"bad URL":      {[]string{"--redis", "localhost"}, "valid forms"},
		"TLS":          {[]string{"--redis", "rediss://127.0.0.1"}, "TLS"},
		"part":         {[]string{"--parts", "got"}, "get, put, hot"},
		"value":        {[]string{"--value-bytes", "1000"}, "8192"},
		"connections":  {[]string{"--connections", "0"}, "--connections"},
		"argument":     {[]string{"now"}, "now"},
		"missing file": {[]string{"--render", "none.json"}, "none.json"},
	} {
		var out, errs bytes.Buffer
		if code, err := run(t.Context(), c.args, &out, &errs); code != 2 || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: exit code %d, %v; want 2 and a message that mentions %q", name, code, err, c.want)
		}
	}
}

// The whole comparison. It needs a real server, because rueidis' client-side caching needs one that tracks keys:
//
//	KVTIER_BENCH_REDIS=redis://127.0.0.1:6379 go test .
func TestEveryContenderDoesTheWork(t *testing.T) {
	url := os.Getenv("KVTIER_BENCH_REDIS")
	if url == "" {
		t.Skip("KVTIER_BENCH_REDIS names no server")
	}
	file := filepath.Join(t.TempDir(), "r.json")
	var out, errs bytes.Buffer
	code, err := run(t.Context(), []string{"--redis", url, "--duration", "50ms", "--value-bytes", "65536", "--data-bytes", "4194304", "--json", file}, &out, &errs)
	if code != 0 || err != nil {
		t.Fatalf("exit code %d: %v\n%s", code, err, errs.String())
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Get) != 13 || len(r.Put) != 9 || len(r.Hot) != 14 {
		t.Errorf("%d, %d and %d rows", len(r.Get), len(r.Put), len(r.Hot))
	}
	for _, x := range append(r.Get, r.Put...) {
		if x.GBps <= 0 || x.KvtierTimes <= 0 {
			t.Errorf("row %+v", x)
		}
	}
	if !strings.Contains(out.String(), "go-redis MGET of 16 (v9.") {
		t.Errorf("no versions in\n%s", out.String())
	}
}

func TestContendersReadWhatTheyWrote(t *testing.T) {
	m := miniredis.RunT(t)
	v := newValues(64<<10, 2<<20)
	r := newRunner(v, 2, "test")
	client := goRedisClient(m.Addr(), "", "", 2)
	all := append(goRedisContenders(client, 2, v.bytes), cacheContenders(goRedisClient(m.Addr(), "", "", 2))...)
	for _, c := range all {
		if err := r.load(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		w, err := r.gets(c).Do(t.Context())
		if err != nil || w.Ops != 32 || w.Bytes != 32*64<<10 {
			t.Errorf("%s: %+v, %v", c.name, w, err)
		}
	}
	for _, k := range m.Keys() {
		if !strings.HasPrefix(k, bench.KeyPrefix) || m.TTL(k) <= 0 {
			t.Errorf("key %q with TTL %v: want our prefix and an end", k, m.TTL(k))
		}
	}
	for _, c := range all {
		if c.close != nil {
			c.close()
		}
	}
}

func TestHotContendersHit(t *testing.T) {
	all, err := hotContenders(t.Context(), "", "", "", "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		for _, goroutines := range []int{1, 2} {
			if w, err := h.method(goroutines).Do(t.Context()); err != nil || w.Ops == 0 {
				t.Errorf("%s: %+v, %v", h.name, w, err)
			}
		}
		if h.close != nil {
			defer h.close() // not now: kvtier's two rows share a tier
		}
	}
}

func TestSink(t *testing.T) {
	s := sink{buf: make([]byte, 8)}
	if n, err := s.ReadFrom(strings.NewReader("kvtier")); n != 6 || err != nil || string(s.buf[:6]) != "kvtier" {
		t.Errorf("ReadFrom = %d, %v, %q", n, err, s.buf)
	}
	if _, err := s.ReadFrom(strings.NewReader("more than that")); err == nil {
		t.Error("more than fits was taken")
	}
}
