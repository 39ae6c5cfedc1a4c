package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/worker/llama"
)

// demoCluster is everything that the demo runs in this process.
type demoCluster struct {
	model  string
	redis  demoRedis
	client *coordinator.Client
	coord  *runningCoordinator
	data   *redisstore.Store // for looking, past the outage
	nodes  []*node
	served chan error
	stop   context.CancelFunc
}

// demoRedis is a Redis that can be taken away.
type demoRedis interface {
	name() string
	url() string       // through which workers and coordinator reach it
	directURL() string // which works during the outage too, if the server does
	outage() error
	restore() error
	close()
}

func startDemoCluster(ctx context.Context, redisURL string) (_ *demoCluster, err error) {
	if redisURL == "" {
		redisURL = os.Getenv("REDIS_URL")
	}
	c := &demoCluster{model: "demo-" + strings.ToLower(rand.Text()[:8]), served: make(chan error, 1)}
	if c.redis, err = openDemoRedis(ctx, redisURL); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(ctx))
		}
	}()
	if c.data, err = redisstore.OpenURL(c.redis.directURL()); err != nil {
		return nil, usageError{err}
	}
	if _, err := c.data.Check(ctx); err != nil && redisURL != "" {
		return nil, usagef("%w: is it running, and the URL right?", err)
	}
	quiet := slog.New(slog.DiscardHandler)
	// Shorter than in production, so that outage and recovery take seconds.
	const poll, lease = 200 * time.Millisecond, time.Second
	c.coord, err = startCoordinator(coordinatorOptions{redis: c.redis.url(), lease: lease, reconcile: poll, logger: quiet})
	if err != nil {
		return nil, err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	go func() { c.served <- httpapi.Serve(serving, ln, c.coord.Handler(""), time.Second) }()
	if c.client, err = coordinator.NewClient(coordinator.ClientOptions{URL: "http://" + ln.Addr().String()}); err != nil {
		return nil, err
	}
	for i := range 2 {
		o := llama.Options{}
		n, err := startNode(ctx, nodeOptions{
			model: c.model, checkpoints: []checkpoint{shipped(shippedV1, o), shipped(shippedV2, o)}, address: fmt.Sprintf("worker-%d", i+1),
			redis: c.redis.url(), coordinator: c.client, onExpiry: coordinator.Local, hotBytes: 64 << 20,
			gate: gate.Always, // what it shows must not depend on how busy this machine is
			poll: poll, lease: lease, logger: quiet,
		})
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, n)
	}
	return c, c.await(ctx, "workers to be ready", func() bool {
		for _, n := range c.nodes {
			if len(n.degraded()) > 0 {
				return false
			}
		}
		return true
	})
}

// await polls until ok, for at most 20 s.
func (c *demoCluster) await(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("demo: waited too long for %s", what)
		}
	}
	return nil
}

// keys counts what Redis holds of a version, in every epoch that the demo used.
func (c *demoCluster) keys(ctx context.Context, v block.Variant, epochs map[block.Epoch]bool) (n int, err error) {
	for e := range epochs {
		k, err := c.data.CountPrefix(ctx, block.EpochPrefix(v, e))
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

func (c *demoCluster) close(ctx context.Context) error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.Close(ctx))
	}
	if c.client != nil {
		c.client.Close()
	}
	if c.stop != nil {
		c.stop()
		errs = append(errs, <-c.served)
	}
	if c.coord != nil {
		// Only now: a coordinator that is running would write the record again.
		errs = append(errs, c.coord.Coordinator.Close(), c.coord.control.Forget(ctx, c.model), c.coord.Close())
	}
	if c.data != nil {
		errs = append(errs, c.data.Close())
	}
	c.redis.close()
	return errors.Join(errs...)
}

func openDemoRedis(ctx context.Context, raw string) (demoRedis, error) {
	if raw == "" {
		m := miniredis.NewMiniRedis()
		if err := m.Start(); err != nil {
			return nil, fmt.Errorf("demo: start the embedded Redis: %w", err)
		}
		return embeddedRedis{m}, nil
	}
	if _, err := redisstore.ParseURL(raw); err != nil {
		return nil, usageError{err}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "redis" {
		return nil, usagef("--redis %s: the demo puts a proxy in front of Redis to stage an outage, and knows only redis://[user:password@]host:port", redisstore.Redact(raw))
	}
	p := &redisProxy{direct: u, target: u.Host, conns: map[net.Conn]bool{}}
	if u.Port() == "" {
		p.target = net.JoinHostPort(u.Hostname(), "6379")
	}
	if p.ln, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	p.addr = p.ln.Addr().String()
	p.wg.Go(func() { p.serve(p.ln) })
	return p, nil
}

// embeddedRedis is miniredis: the same protocol, in this process. Its data survives the outage, as that of a server would behind a
// network that is down.
type embeddedRedis struct{ m *miniredis.Miniredis }

func (e embeddedRedis) name() string      { return "embedded Redis" }
func (e embeddedRedis) url() string       { return "redis://" + e.m.Addr() }
func (e embeddedRedis) directURL() string { return e.url() }
func (e embeddedRedis) outage() error     { e.m.Close(); return nil }
func (e embeddedRedis) restore() error    { return e.m.Restart() }
func (e embeddedRedis) close()            { e.m.Close() }

// redisProxy forwards connections to a real Redis, and during an outage refuses them.
type redisProxy struct {
	direct       *url.URL
	target, addr string

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func (p *redisProxy) name() string      { return redisstore.Redact(p.direct.String()) }
func (p *redisProxy) directURL() string { return p.direct.String() }
func (p *redisProxy) url() string {
	u := *p.direct
	u.Host = p.addr
	return u.String()
}

func (p *redisProxy) serve(ln net.Listener) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		out, err := net.DialTimeout("tcp", p.target, time.Second)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			p.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				pair[0].Close()
				pair[1].Close()
				p.mu.Lock()
				delete(p.conns, pair[1])
				p.mu.Unlock()
			})
		}
	}
}

func (p *redisProxy) outage() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.ln.Close()
	for c := range p.conns {
		c.Close()
	}
	return err
}

func (p *redisProxy) restore() error {
	ln, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.ln = ln
	p.mu.Unlock()
	p.wg.Go(func() { p.serve(ln) })
	return nil
}

func (p *redisProxy) close() {
	_ = p.outage()
	p.wg.Wait()
}
