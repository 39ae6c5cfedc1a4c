// Package testllama gives tests a real llama-server in a container, with its slot directory on this machine. Machines without Docker skip
// those tests, unless KVTIER_REQUIRE_CONTAINERS=1. KVTIER_TEST_LLAMA_IMAGE names another image than the one that users pull.
package testllama

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"

	"github.com/kvtier/kvtier/internal/testredis"
)

// DefaultImage is the image unless KVTIER_TEST_LLAMA_IMAGE names another.
const DefaultImage = "ghcr.io/ggml-org/llama.cpp:server"

// Server is one running container. Its methods fail the test that owns it, and are for one goroutine.
type Server struct {
	tb   testing.TB
	ctr  testcontainers.Container
	port string
	// SlotsDir is the slot directory.
	SlotsDir string
}

// Start runs llama-server with a model file for this test alone and removes it when the test ends. args are more arguments of llama-server, such
// as "--parallel", "2". It returns when the server answers; it skips or fails the test when there is no container engine.
func Start(tb testing.TB, model string, args ...string) *Server {
	tb.Helper()
	return StartWith(tb, model, tb.TempDir(), args...)
}

// StartWith is Start with a slot directory of the caller's.
func StartWith(tb testing.TB, model, slots string, args ...string) *Server {
	tb.Helper()
	testredis.Need(tb)
	model, err := filepath.Abs(model)
	if err != nil {
		tb.Fatalf("testllama: %v", err)
	}
	s := &Server{tb: tb, port: freePort(tb), SlotsDir: slots}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := append([]string{"--host", "0.0.0.0", "--port", "8080", "--model", "/models/" + filepath.Base(model), "--slot-save-path", "/slots"}, args...)
	s.ctr, err = testcontainers.Run(ctx, image(), testcontainers.WithCmd(cmd...), testcontainers.WithLogger(quiet{}),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithConfigModifier(func(c *container.Config) {
			// as who runs the tests, so that each can remove the other's files
			c.User = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
		}),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) {
			h.PortBindings = network.PortMap{network.MustParsePort("8080/tcp"): {{HostPort: s.port}}}
			h.Mounts = []mount.Mount{
				{Type: mount.TypeBind, Source: model, Target: "/models/" + filepath.Base(model), ReadOnly: true},
				{Type: mount.TypeBind, Source: slots, Target: "/slots"},
			}
		}))
	if s.ctr != nil {
		testcontainers.CleanupContainer(tb, s.ctr)
	}
	if err != nil {
		tb.Fatalf("testllama: %v", err)
	}
	s.await()
	return s
}

func image() string {
	if image := os.Getenv("KVTIER_TEST_LLAMA_IMAGE"); image != "" {
		return image
	}
	return DefaultImage
}

// URL is the server's address. It stays the same over Kill and Restart.
func (s *Server) URL() string { return "http://127.0.0.1:" + s.port }

// Kill ends the process at once.
func (s *Server) Kill() {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := time.Duration(0)
	if err := s.ctr.Stop(ctx, &now); err != nil {
		s.tb.Fatalf("testllama: kill: %v", err)
	}
}

// Restart starts it again after Kill, and returns when it answers.
func (s *Server) Restart() {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.ctr.Start(ctx); err != nil {
		s.tb.Fatalf("testllama: restart: %v", err)
	}
	s.await()
}

// await waits until the model is loaded.
func (s *Server) await() {
	s.tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		resp, err := http.Get(s.URL() + "/health")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			s.tb.Fatalf("testllama: the server does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("testllama: free port: %v", err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		tb.Fatalf("testllama: free port: %v", err)
	}
	return port
}

// quiet drops the engine's chatter.
type quiet struct{}

func (quiet) Printf(string, ...any) {}
