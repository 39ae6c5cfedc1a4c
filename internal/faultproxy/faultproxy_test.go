package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"math/bits"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return ln.Addr().String()
}

func open(t *testing.T) *Proxy {
	t.Helper()
	p, err := Open(Options{Listen: "127.0.0.1:0", Upstream: echo(t), Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func set(t *testing.T, p *Proxy, f Faults) {
	t.Helper()
	if err := p.Set(f); err != nil {
		t.Fatal(err)
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// trip sends data and reads the same number of bytes.
func trip(t *testing.T, c net.Conn, data []byte) ([]byte, error) {
	t.Helper()
	go func() { _, _ = c.Write(data) }()
	got := make([]byte, len(data))
	n, err := io.ReadFull(c, got)
	return got[:n], err
}

func TestWithoutFaultsEveryByteArrives(t *testing.T) {
	p := open(t)
	c := dial(t, p)
	data := pattern(3 << 20)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c) // to the end: a half-closed connection still delivers
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(data), err)
	}
	if s := p.Stats(); s.BytesUp != int64(len(data)) || s.BytesDown != int64(len(data)) || s.Resets != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// Lower bounds only: a busy machine may be as slow as it likes.
func TestDelays(t *testing.T) {
	p := open(t)
	c := dial(t, p)
	for name, x := range map[string]struct {
		f     Faults
		bytes int
		least time.Duration
	}{
		"latency":   {Faults{LatencyMS: 60}, 100, 60 * time.Millisecond},
		"bandwidth": {Faults{BytesPerSecond: 4 << 20}, 512 << 10, 120 * time.Millisecond},
		"loss":      {Faults{Loss: 0.9}, 20 << 10, resendDelay},
	} {
		set(t, p, x.f)
		start := time.Now()
		if got, err := trip(t, c, pattern(x.bytes)); err != nil || !bytes.Equal(got, pattern(x.bytes)) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if d := time.Since(start); d < x.least {
			t.Errorf("%s: took %v, want %v at least", name, d, x.least)
		}
	}
}

// The limit is the link's, however many connections there are.
func TestBandwidthIsShared(t *testing.T) {
	p := open(t)
	conns := []net.Conn{dial(t, p), dial(t, p), dial(t, p), dial(t, p)}
	set(t, p, Faults{BytesPerSecond: 4 << 20})
	start := time.Now()
	done := make(chan error, len(conns))
	for _, c := range conns {
		go func() {
			_, err := trip(t, c, pattern(128<<10))
			done <- err
		}()
	}
	for range conns {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if d := time.Since(start); d < 120*time.Millisecond {
		t.Errorf("4 × 128 KiB at 4 MiB/s took %v", d)
	}
}

func TestBlackholeHoldsAndHeals(t *testing.T) {
	p := open(t)
	c := dial(t, p)
	set(t, p, Faults{Blackhole: true})
	data := pattern(100)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes passed", n)
	}
	set(t, p, Faults{})
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	got := make([]byte, 100)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after healing: %v", err)
	}
}

func TestRefuseCutsAndComesBack(t *testing.T) {
	p := open(t)
	c := dial(t, p)
	if _, err := trip(t, c, pattern(10)); err != nil {
		t.Fatal(err)
	}
	set(t, p, Faults{Refuse: true})
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		c.Close()
		t.Error("a new connection was accepted")
	}
	set(t, p, Faults{})
	if got, err := trip(t, dial(t, p), pattern(10)); err != nil {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}

func TestResetInTheMiddle(t *testing.T) {
	p := open(t)
	set(t, p, Faults{ResetAfterBytes: 1000})
	got, err := trip(t, dial(t, p), pattern(1<<20))
	if err == nil || len(got) > 1000 || !bytes.Equal(got, pattern(len(got))) {
		t.Errorf("%d bytes before %v", len(got), err)
	}
	if p.Stats().Resets != 1 {
		t.Errorf("Stats = %+v", p.Stats())
	}
}

func TestFlipsOnlyBits(t *testing.T) {
	p := open(t)
	set(t, p, Faults{FlipEveryBytes: 1000})
	data := pattern(1 << 20)
	got, err := trip(t, dial(t, p), data)
	if err != nil {
		t.Fatal(err)
	}
	flips := 0
	for i := range got {
		flips += bits.OnesCount8(got[i] ^ data[i])
	}
	if flips < 700 || flips > 1400 || int64(flips) != p.Stats().Flips {
		t.Errorf("%d bits flipped in 1 MiB, %d counted, want about 1049", flips, p.Stats().Flips)
	}
}

func TestSetRefusesWhatCannotBe(t *testing.T) {
	p := open(t)
	for _, f := range []Faults{{LatencyMS: -1}, {LatencyMS: 1 << 40}, {Loss: 1}, {Loss: -0.1}, {BytesPerSecond: -1}, {ResetAfterBytes: -1}, {FlipEveryBytes: 1 << 60}} {
		if err := p.Set(f); err == nil {
			t.Errorf("Set(%+v) succeeded", f)
		}
	}
	_ = p.Close()
	if err := p.Set(Faults{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Set after Close: %v", err)
	}
	if _, err := Open(Options{Listen: "127.0.0.1:0", Upstream: "nowhere"}); err == nil {
		t.Error("Open took an upstream without a port")
	}
}

func TestHandler(t *testing.T) {
	p := open(t)
	h := Handler(p, "secret")
	do := func(method, path, body, token string) (int, string) {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for _, x := range []struct {
		method, path, body, token string
		code                      int
		want                      string
	}{
		{"GET", "/healthz", "", "", http.StatusOK, "ok"},
		{"GET", "/v1/faults", "", "", http.StatusUnauthorized, "token"},
		{"PUT", "/v1/faults", `{"refuse":true}`, "wrong", http.StatusUnauthorized, "token"},
		{"PUT", "/v1/faults", `{"latency_ms":200}`, "secret", http.StatusOK, `"latency_ms":200`},
		{"GET", "/v1/faults", "", "secret", http.StatusOK, `"latency_ms":200`},
		{"PUT", "/v1/faults", `{"loss":2}`, "secret", http.StatusBadRequest, "loss is 2"},
		{"PUT", "/v1/faults", `{"latencyms":2}`, "secret", http.StatusBadRequest, "latencyms"},
		{"DELETE", "/v1/faults", "", "secret", http.StatusOK, `"faults":{}`},
		{"POST", "/v1/faults", `{}`, "secret", http.StatusMethodNotAllowed, ""},
	} {
		if code, body := do(x.method, x.path, x.body, x.token); code != x.code || !strings.Contains(body, x.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %q", x.method, x.path, x.body, code, body, x.code, x.want)
		}
	}
	if p.Faults() != (Faults{}) {
		t.Errorf("Faults = %+v", p.Faults())
	}
}
