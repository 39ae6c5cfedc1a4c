package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/internal/httpapi"
)

type chaosFlags struct {
	control listenFlags
	proxy   faultproxy.Options
	cycle   time.Duration
}

func newChaos() *cobra.Command {
	var f chaosFlags
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Stand in front of Redis and make its network as bad as you ask for",
		Long: `chaos carries TCP connections to --upstream and does to them what it is told over HTTP: delay, throttle, lose, refuse, stop, cut off in the
middle of a value, flip bits. Point workers at --listen in place of Redis and watch that they only get slower by what you would expect.

PUT /v1/faults replaces all faults by those in the body, DELETE /v1/faults heals, GET /v1/faults shows both faults and counts. Fields:
latency_ms, bytes_per_second (all connections together), loss (part of the packets), refuse, blackhole, reset_after_bytes, flip_every_bytes.
They combine, and change for connections that are open. With --cycle it goes through all of them by itself, healthy in between.

It is a tool for tests. Who reaches --listen reaches the server behind it, whose own password still holds.`,
		Example: `  kvtier chaos --listen 127.0.0.1:6380 --upstream 127.0.0.1:6379
  kvtier worker --redis redis://127.0.0.1:6380
  curl -X PUT 127.0.0.1:8474/v1/faults -d '{"latency_ms":200,"bytes_per_second":10000000}'
  curl -X PUT 127.0.0.1:8474/v1/faults -d '{"flip_every_bytes":100000}'
  curl -X DELETE 127.0.0.1:8474/v1/faults
  kvtier chaos --listen 127.0.0.1:6380 --upstream 127.0.0.1:6379 --cycle 30s   # a soak`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.proxy.Listen, "listen", "127.0.0.1:6380", "`address` that clients of the server connect to; beyond loopback it needs --insecure")
	fl.StringVar(&f.control.listen, "control", "127.0.0.1:8474", "`address` of the HTTP API; beyond loopback it needs --token or --insecure")
	fl.StringVar(&f.control.token, "token", "", "bearer token that the HTTP API asks for")
	fl.BoolVar(&f.control.insecure, "insecure", false, "listen beyond loopback without a token")
	fl.TextVar(&f.control.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fl.StringVar(&f.proxy.Upstream, "upstream", "127.0.0.1:6379", "`address` of the server")
	fl.DurationVar(&f.cycle, "cycle", 0, "go through every fault, each for this long and healthy for as long afterwards; 0 for none")
	fl.Uint64Var(&f.proxy.Seed, "seed", 0, "decides which bits flip and which packets get lost (default: another one each time)")
	return cmd
}

func (f *chaosFlags) run(ctx context.Context) error {
	if err := httpapi.ValidateListen(f.control.listen, f.control.token, f.control.insecure); err != nil {
		return usagef("--control: %w", err)
	}
	if err := httpapi.ValidateListen(f.proxy.Listen, "", f.control.insecure); err != nil {
		return usagef("--listen: %w", err)
	}
	if f.cycle < 0 {
		return usagef("--cycle %v: want 0 for none, or more", f.cycle)
	}
	if f.proxy.Seed == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		f.proxy.Seed = binary.LittleEndian.Uint64(b[:])
	}
	log := f.control.logger()
	p, err := faultproxy.Open(f.proxy)
	if err != nil {
		return usageError{err}
	}
	defer p.Close()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", f.control.listen)
	if err != nil {
		return usagef("--control: %w", err)
	}
	log.Info("serving", "listen", p.Addr(), "control", ln.Addr().String(), "upstream", f.proxy.Upstream, "seed", f.proxy.Seed)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.cycle > 0 {
		wg.Go(func() { cycleFaults(ctx, log, p, f.cycle) })
	}
	return httpapi.Serve(ctx, ln, faultproxy.Handler(p, f.control.token), drainTimeout)
}

// chaosCycle is what --cycle goes through.
var chaosCycle = []faultproxy.Faults{
	{LatencyMS: 50}, {LatencyMS: 200}, {LatencyMS: 1000}, {BytesPerSecond: 10_000_000}, {Loss: 0.01},
	{ResetAfterBytes: 300_000}, {FlipEveryBytes: 500_000}, {Blackhole: true}, {Refuse: true},
	{LatencyMS: 20, BytesPerSecond: 5_000_000, FlipEveryBytes: 2_000_000},
}

func cycleFaults(ctx context.Context, log *slog.Logger, p *faultproxy.Proxy, each time.Duration) {
	for i := 0; ; i++ {
		for _, faults := range []faultproxy.Faults{chaosCycle[i%len(chaosCycle)], {}} {
			if err := p.Set(faults); err != nil && !errors.Is(err, faultproxy.ErrClosed) {
				log.Warn("faults not set", "err", err)
			} else {
				log.Info("faults", "now", faults, "stats", p.Stats())
			}
			select {
			case <-time.After(each):
			case <-ctx.Done():
				return
			}
		}
	}
}
