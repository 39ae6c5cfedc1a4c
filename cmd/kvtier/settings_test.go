package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	redisserver "github.com/alicebob/miniredis/v2/server"
)

// oldServer answers what a start-up asks, as a Redis of that version would.
func oldServer(t *testing.T, version string) string {
	t.Helper()
	s, err := redisserver.NewServer("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	answer := func(name string, f func(*redisserver.Peer)) {
		if err := s.Register(name, func(c *redisserver.Peer, _ string, _ []string) { f(c) }); err != nil {
			t.Fatal(err)
		}
	}
	answer("HELLO", func(c *redisserver.Peer) { c.WriteStrings([]string{"server", "redis", "version", version}) })
	answer("PING", func(c *redisserver.Peer) { c.WriteInline("PONG") })
	answer("CLIENT", func(c *redisserver.Peer) { c.WriteOK() })
	answer("INFO", func(c *redisserver.Peer) { c.WriteBulk("maxmemory:1000000\r\nmaxmemory_policy:volatile-lfu\r\n") })
	return "redis://" + s.Addr().String()
}

func TestServersThatAreUnfitAreNamed(t *testing.T) {
	for name, tt := range map[string]struct {
		url, want string
	}{
		"nobody listens": {"redis://127.0.0.1:1", "connection refused"},
		"too old":        {oldServer(t, "6.2.14"), "need Redis 7.0"},
		"new enough":     {oldServer(t, "7.0.15"), ""}, // Debian 12's and Ubuntu 24.04's
	} {
		_, err := servers(tt.url, tt.url, false)[0].look(t.Context())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	healthy := miniredis.RunT(t)
	if _, err := (server{"redis", "redis://" + healthy.Addr(), true, true}).look(t.Context()); err != nil || len(healthy.Keys()) != 0 {
		t.Errorf("a healthy server: %v, keys %v", err, healthy.Keys())
	}
	if all := servers("redis://a", "redis://b", true); len(all) != 2 || !all[0].writes || all[1].writes || all[1].data {
		t.Errorf("servers: %+v", all)
	}
}

// Begin and end of a problem are a line each, however often it is seen.
func TestProblemsAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	w := watchSettings(slog.New(slog.NewTextHandler(&log, nil)), nil)
	defer w.Close()
	for range 3 {
		w.found("redis", errors.New("dial 127.0.0.1:6379: refused"))
	}
	if got := w.problems(); len(got) != 1 || got[0] != "redis: dial 127.0.0.1:6379: refused" {
		t.Errorf("problems: %q", got)
	}
	w.found("redis", nil)
	w.found("redis", nil)
	if got := log.String(); len(w.problems()) != 0 || strings.Count(got, "\n") != 2 || !strings.Contains(got, "usable again") {
		t.Errorf("problems %q, log:\n%s", w.problems(), got)
	}
}
