// Package testredis gives tests a real Redis in a container. Machines without Docker skip those tests with one line, unless
// KVTIER_REQUIRE_CONTAINERS=1, which makes a missing engine a failure. KVTIER_TEST_REDIS_IMAGE names another image than
// redis:8.0.
package testredis

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/redis/go-redis/v9"
	"github.com/testcontainers/testcontainers-go"
	tcredis "github.com/testcontainers/testcontainers-go/modules/redis"
)

// DefaultImage is the image unless KVTIER_TEST_REDIS_IMAGE names another.
const DefaultImage = "redis:8.0"

// Redis is one running container. Its methods fail the test that owns it, and are for one goroutine.
type Redis struct {
	tb   testing.TB
	ctr  *tcredis.RedisContainer
	addr string
}

// Start runs a container for this test alone and removes it when the test ends. args are arguments of redis-server, such
// as "--maxmemory", "64mb". It skips or fails the test when there is no container engine. Use a Pool unless the test stops the
// server or needs its own settings.
func Start(tb testing.TB, args ...string) *Redis {
	tb.Helper()
	Need(tb)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ctr, err := run(ctx, args)
	if ctr != nil {
		testcontainers.CleanupContainer(tb, ctr, testcontainers.StopTimeout(0))
	}
	if err != nil {
		tb.Fatalf("testredis: %v", err)
	}
	r := &Redis{tb: tb, ctr: ctr}
	r.locate()
	return r
}

// run starts the container. The published port is chosen here rather than by the engine, so that it is the same after Stop and Start.
func run(ctx context.Context, args []string) (*tcredis.RedisContainer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	// no snapshots: a test that stops its server must not find yesterday's data, and disks are slow
	cmd := append([]string{serverName(Image()), "--save", "", "--appendonly", "no"}, args...)
	return tcredis.Run(ctx, Image(), testcontainers.WithCmd(cmd...), testcontainers.WithLogger(quiet{}),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.PortBindings = network.PortMap{network.MustParsePort("6379/tcp"): {{HostPort: port}}}
		}))
}

// Image is the one that servers are started from.
func Image() string {
	if image := os.Getenv("KVTIER_TEST_REDIS_IMAGE"); image != "" {
		return image
	}
	return DefaultImage
}

// serverName is the program in the image.
func serverName(image string) string {
	if strings.Contains(image, "valkey") {
		return "valkey-server"
	}
	return "redis-server"
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("free port: %w", err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// quiet drops the engine's chatter.
type quiet struct{}

func (quiet) Printf(string, ...any) {}

// locate finds the address and waits until the server answers.
func (r *Redis) locate() {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	addr, err := r.ctr.PortEndpoint(ctx, "6379/tcp", "")
	if err != nil {
		r.tb.Fatalf("testredis: address: %v", err)
	}
	r.addr = strings.Replace(addr, "localhost", "127.0.0.1", 1)
	c := redis.NewClient(&redis.Options{Addr: r.addr, MaxRetries: -1})
	defer c.Close()
	for {
		err := c.Ping(ctx).Err()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			r.tb.Fatalf("testredis: the server does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// URL is the server's address as redis://host:port. It stays the same over Stop and Start.
func (r *Redis) URL() string { return "redis://" + r.addr }

// Addr is host:port.
func (r *Redis) Addr() string { return r.addr }

// Stop ends the server, as a crash does: its data is gone. Connections are refused until Start.
func (r *Redis) Stop() {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	at := time.Duration(0)
	if err := r.ctr.Stop(ctx, &at); err != nil {
		r.tb.Fatalf("testredis: stop: %v", err)
	}
}

// Start starts the server again, empty, and waits until it answers.
func (r *Redis) Start() {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.ctr.Start(ctx); err != nil {
		r.tb.Fatalf("testredis: start: %v", err)
	}
	r.locate()
}

// Pause freezes the server: connections stay open and nothing answers, until Unpause or the end of the test.
func (r *Redis) Pause() {
	r.tb.Helper()
	r.engine("pause", func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerPause(ctx, r.ctr.GetContainerID(), client.ContainerPauseOptions{})
		return err
	})
}

// Unpause lets a paused server go on.
func (r *Redis) Unpause() {
	r.tb.Helper()
	r.engine("unpause", func(ctx context.Context, c *client.Client) error {
		_, err := c.ContainerUnpause(ctx, r.ctr.GetContainerID(), client.ContainerUnpauseOptions{})
		return err
	})
}

func (r *Redis) engine(what string, do func(context.Context, *client.Client) error) {
	r.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		r.tb.Fatalf("testredis: %s: %v", what, err)
	}
	defer c.Close()
	if err := do(ctx, c.Client); err != nil {
		r.tb.Fatalf("testredis: %s: %v", what, err)
	}
}

// Flush removes all keys.
func (r *Redis) Flush() {
	r.tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: r.addr, MaxRetries: -1})
	defer c.Close()
	if err := c.FlushAll(context.Background()).Err(); err != nil {
		r.tb.Fatalf("testredis: flush: %v", err)
	}
}

// Pool shares one container among the tests of a binary. The zero value is ready. A package keeps one in its TestMain:
//
//	func TestMain(m *testing.M) { ...; code := m.Run(); pool.Close(); os.Exit(code) }
type Pool struct {
	mu     sync.Mutex
	shared *Redis
	failed error // why it did not start, so that only the first test waits for that
}

// Get returns the shared server, flushed, starting it the first time. Tests that use it must not run in parallel with each
// other and must not stop it. It skips or fails the test as Start does.
func (p *Pool) Get(tb testing.TB) *Redis {
	tb.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	Need(tb)
	if p.failed != nil {
		tb.Fatalf("testredis: the shared server did not start: %v", p.failed)
	}
	if p.shared == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		ctr, err := run(ctx, nil)
		if err != nil {
			_ = testcontainers.TerminateContainer(ctr)
			p.failed = err
			tb.Fatalf("testredis: %v", err)
		}
		p.shared = &Redis{tb: tb, ctr: ctr}
		p.shared.locate()
	}
	r := *p.shared
	r.tb = tb
	r.Flush()
	return &r
}

// Close removes the container, if there is one.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shared != nil {
		_ = testcontainers.TerminateContainer(p.shared.ctr) // the engine's reaper gets it otherwise
		p.shared = nil
	}
}
