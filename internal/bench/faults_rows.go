package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
)

const (
	faultHot   = 256 << 20
	faultSpill = 64 << 20
	// nothingHot keeps no block: every reuse is through Redis.
	nothingHot = tiered.NoHotTier
	// faultPrefixes is how many different prefixes a row reuses.
	faultPrefixes = 3
	// faultAdapt is how many requests a worker gets to learn about a link before it is measured.
	faultAdapt = 10
)

// faultRows are all rows, in the order of the table.
var faultRows = []faultRow{
	{name: "control", about: "no cache on either side: how far from 1 the machine alone brings a ratio of short prompts", run: control},
	{name: "no-reuse", about: "every prompt is new, Redis is well", target: "p50 and p99 ≤ 1.03", run: noReuse,
		met: func(r FaultRow) bool { return r.P50Ratio <= 1.03 && r.P99Ratio <= 1.03 }},
	{name: "full-reuse", about: "the whole prefix is in Redis, and in no worker's memory", target: "p50 ≤ 0.10", run: reuse(faultproxy.Faults{}, 0),
		met: func(r FaultRow) bool { return r.P50Ratio <= 0.10 }},
	{name: "link-like-compute", about: "fetching everything takes as long as computing everything", target: "p50 ≤ 0.65", run: linkLikeCompute,
		met: func(r FaultRow) bool { return r.P50Ratio <= 0.65 }},
	{name: "refused-first", about: "connections refused: the first requests, until the breaker opens", target: "≤ 250 ms added", run: first(faultproxy.Faults{Refuse: true}),
		met: func(r FaultRow) bool { return r.AddedMaxMs <= 250 }},
	{name: "refused", about: "connections refused, breaker open", target: "p50 ≤ 1.02 and ≤ 50 µs added", run: open(faultproxy.Faults{Refuse: true}), met: metOpen},
	{name: "blackhole-first", about: "nothing answers: the first requests, until the breaker opens", target: "≤ 250 ms added, once", run: first(faultproxy.Faults{Blackhole: true}),
		met: func(r FaultRow) bool { return r.AddedMaxMs <= 250 }},
	{name: "blackhole", about: "nothing answers, breaker open", target: "p50 ≤ 1.02 and ≤ 50 µs added", run: open(faultproxy.Faults{Blackhole: true}), met: metOpen},
	{name: "slow-50ms", about: "each round trip takes 50 ms more", target: "p50 ≤ 1.05", run: reuse(faultproxy.Faults{LatencyMS: 50}, faultAdapt), met: met105},
	{name: "slow-200ms", about: "each round trip takes 200 ms more", target: "p50 ≤ 1.05", run: reuse(faultproxy.Faults{LatencyMS: 200}, faultAdapt), met: met105},
	{name: "slow-1000ms", about: "each round trip takes 1 s more", target: "p50 ≤ 1.05", run: reuse(faultproxy.Faults{LatencyMS: 1000}, faultAdapt), met: met105},
	{name: "slow-10MB/s", about: "the link carries 10 MB/s", target: "p50 ≤ 1.05", run: reuse(faultproxy.Faults{BytesPerSecond: 10_000_000}, faultAdapt), met: met105},
	{name: "loss-1%", about: "one packet in a hundred is lost", run: reuse(faultproxy.Faults{Loss: 0.01}, faultAdapt)},
	{name: "reset", about: "connections are cut off in the middle of values", run: reuse(faultproxy.Faults{ResetAfterBytes: 300_000}, 0)},
	{name: "bit-flips", about: "one bit in 500 kB of what Redis sends is flipped", run: reuse(faultproxy.Faults{FlipEveryBytes: 500_000}, 0)},
	{name: "client-kill", about: "CLIENT KILL of all connections every 30 ms", run: clientKill},
	{name: "client-pause", about: "CLIENT PAUSE ALL for 150 ms in every 300 ms", real: true, run: clientPause},
	{name: "flush", about: "FLUSHALL before every fifth request", run: flushed},
	{name: "oom", about: "Redis is full (maxmemory, noeviction): stored prefixes and new prompts in turns", target: "hits as before", real: true, run: outOfMemory,
		met: func(r FaultRow) bool { return strings.HasPrefix(r.Note, "all ") }},
	{name: "spill-4x", about: "four times as much to store as the link takes", target: "p99 ≤ 1.05, queue below its bound", run: spillOverload,
		met: func(r FaultRow) bool { return r.P99Ratio <= 1.05 && strings.Contains(r.Note, "below") }},
	{name: "tenant-probe", about: "one tenant asks for what another has, in this worker and in Redis, and for what nobody has, which stands under `without`",
		target: "nothing reused, p ≥ 0.01", run: tenantProbe, met: func(r FaultRow) bool { return r.Reused == 0 && r.Welch != nil && r.Welch.P >= probeP }},
}

func met105(r FaultRow) bool { return r.P50Ratio <= 1.05 }

func metOpen(r FaultRow) bool { return r.P50Ratio <= 1.02 && r.AddedP50Us <= 50 }

func control(ctx context.Context, b *faultBench) (FaultRow, error) { return b.fresh(ctx, true) }

func noReuse(ctx context.Context, b *faultBench) (FaultRow, error) { return b.fresh(ctx, false) }

// fresh is a row of prompts that are new, and short: there are many of them, because what it is about is a few percent of little.
func (b *faultBench) fresh(ctx context.Context, control bool) (FaultRow, error) {
	w, err := b.start(ctx, false, faultHot, faultSpill)
	if err != nil {
		return FaultRow{}, err
	}
	pairs, err := b.compare(ctx, w, b.prompts(4*b.o.Requests, b.o.NewTokens), control)
	return summary(pairs), err
}

// prefixes are stored by a worker of their own before the first row that wants them.
func (b *faultBench) prefixes(ctx context.Context) ([][]int32, error) {
	if b.shared != nil {
		return b.shared, nil
	}
	producer, err := b.start(ctx, false, faultHot, faultSpill)
	if err != nil {
		return nil, err
	}
	b.shared = b.prompts(faultPrefixes, b.o.PrefixTokens)
	for _, p := range b.shared {
		if _, err := producer.Replica.Complete(ctx, worker.Request{Tokens: p, MaxTokens: 1}); err != nil {
			return nil, err
		}
	}
	return b.shared, producer.Cache.Flush(ctx)
}

// stored starts a worker that has no memory of its own, behind the proxy, and returns prefixes that are in Redis.
func (b *faultBench) stored(ctx context.Context) (*FaultWorker, [][]int32, error) {
	prompts, err := b.prefixes(ctx)
	if err != nil {
		return nil, nil, err
	}
	w, err := b.connected(ctx)
	return w, prompts, err
}

// connected starts a worker behind the proxy that has seen what a healthy link is like, and mended what an earlier row has damaged.
func (b *faultBench) connected(ctx context.Context) (*FaultWorker, error) {
	w, err := b.start(ctx, true, nothingHot, faultSpill)
	if err != nil {
		return nil, err
	}
	for range 2 {
		for _, p := range b.shared {
			if _, err := w.Replica.Complete(ctx, worker.Request{Tokens: p, MaxTokens: 1}); err != nil {
				return nil, err
			}
		}
	}
	return w, w.Cache.Flush(ctx)
}

// reuse is a row of prefixes that are in Redis, under faults, of which adapt requests are not counted.
func reuse(f faultproxy.Faults, adapt int) func(context.Context, *faultBench) (FaultRow, error) {
	return func(ctx context.Context, b *faultBench) (FaultRow, error) {
		return b.reuse(ctx, adapt, func([]pair) faultproxy.Faults { return f })
	}
}

func (b *faultBench) reuse(ctx context.Context, adapt int, faults func(healthy []pair) faultproxy.Faults) (FaultRow, error) {
	w, prompts, err := b.stored(ctx)
	if err != nil {
		return FaultRow{}, err
	}
	healthy, err := b.measure(ctx, w, again(prompts, faultTurn))
	if err != nil {
		return FaultRow{}, err
	}
	f := faults(healthy)
	if err := b.proxy.Set(f); err != nil {
		return FaultRow{}, err
	}
	worst := 0.0
	for i := range adapt {
		res, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompts[i%len(prompts)], MaxTokens: 1})
		if err != nil {
			return FaultRow{}, err
		}
		worst = max(worst, ms(res.TTFT)-summary(healthy).PlainP50Ms)
	}
	pairs, err := b.measure(ctx, w, again(prompts, b.o.Requests))
	if err != nil {
		return FaultRow{}, err
	}
	row := summary(pairs)
	if adapt > 0 {
		row.Note = fmt.Sprintf("at most %.0f ms added to one of the first %d requests", worst, adapt)
	}
	if n := w.Cache.Stats().BadValues; n > 0 {
		row.Note = fmt.Sprintf("%d bad values noticed", n)
	}
	if f == (faultproxy.Faults{}) {
		return row, nil
	}
	if err := b.proxy.Set(faultproxy.Faults{}); err != nil {
		return row, err
	}
	row.Recovery, err = b.recovery(ctx, w, prompts[0])
	return row, err
}

// linkLikeCompute sets the bandwidth so that loading takes as long as computing did.
func linkLikeCompute(ctx context.Context, b *faultBench) (FaultRow, error) {
	var rate int64
	row, err := b.reuse(ctx, faultAdapt, func(healthy []pair) faultproxy.Faults {
		w := b.workers[len(b.workers)-1]
		bytes := w.blockBytes() * float64(b.o.PrefixTokens/w.Cache.Stats().BlockTokens)
		rate = int64(bytes / (summary(healthy).PlainP50Ms / 1000))
		return faultproxy.Faults{BytesPerSecond: rate}
	})
	row.Note = fmt.Sprintf("%.1f MB/s", float64(rate)/1e6)
	return row, err
}

// first measures the requests that meet a fault before the breaker knows of it. There are few of them, so that it begins anew several times.
func first(f faultproxy.Faults) func(context.Context, *faultBench) (FaultRow, error) {
	return func(ctx context.Context, b *faultBench) (FaultRow, error) {
		prompts, err := b.prefixes(ctx)
		if err != nil {
			return FaultRow{}, err
		}
		var pairs []pair
		var sums []float64
		for range 3 {
			if err := b.proxy.Set(faultproxy.Faults{}); err != nil {
				return FaultRow{}, err
			}
			w, err := b.connected(ctx)
			if err != nil {
				return FaultRow{}, err
			}
			if err := b.proxy.Set(f); err != nil {
				return FaultRow{}, err
			}
			p, err := b.measure(ctx, w, again(prompts, faultTurn))
			if err != nil {
				return FaultRow{}, err
			}
			pairs = append(pairs, p...)
			sum := 0.0
			for _, x := range p {
				sum += max(0, ms(x.with-x.plain))
			}
			sums = append(sums, sum)
		}
		row := summary(pairs)
		row.Note = fmt.Sprintf("%.0f ms added in all to the first %d requests, median of %d", quantile(sums, 0.5), faultTurn, len(sums))
		return row, nil
	}
}

// open measures requests behind an open breaker. What it adds is measured with short prompts, next to which it would show.
func open(f faultproxy.Faults) func(context.Context, *faultBench) (FaultRow, error) {
	return func(ctx context.Context, b *faultBench) (FaultRow, error) {
		w, prompts, err := b.stored(ctx)
		if err != nil {
			return FaultRow{}, err
		}
		if err := b.proxy.Set(f); err != nil {
			return FaultRow{}, err
		}
		for i := 0; i < 50 && !w.Refusing(); i++ {
			if _, err := w.Replica.Complete(ctx, worker.Request{Tokens: prompts[i%len(prompts)], MaxTokens: 1}); err != nil {
				return FaultRow{}, err
			}
		}
		if !w.Refusing() {
			return FaultRow{}, errors.New("the breaker does not open")
		}
		pairs, err := b.measure(ctx, w, again(prompts, b.o.Requests))
		if err != nil {
			return FaultRow{}, err
		}
		short, err := b.measure(ctx, w, b.prompts(10*b.o.Requests, 40))
		if err != nil {
			return FaultRow{}, err
		}
		row := summary(pairs)
		s := summary(short)
		row.Requests, row.Failed, row.Identical = row.Requests+s.Requests, row.Failed+s.Failed, row.Identical && s.Identical
		row.AddedP50Us = s.AddedP50Us
		row.Note = fmt.Sprintf("µs added are of prompts of 40 tokens, which take %.1f ms", s.PlainP50Ms)
		if err := b.proxy.Set(faultproxy.Faults{}); err != nil {
			return row, err
		}
		row.Recovery, err = b.recovery(ctx, w, prompts[0])
		return row, err
	}
}

// meanwhile measures reuse while do is called again and again.
func (b *faultBench) meanwhile(ctx context.Context, every time.Duration, do func(context.Context) error) (FaultRow, error) {
	w, prompts, err := b.stored(ctx)
	if err != nil {
		return FaultRow{}, err
	}
	doing, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := do(doing); err != nil && doing.Err() == nil {
					done <- err
					return
				}
			case <-doing.Done():
				done <- nil
				return
			}
		}
	}()
	pairs, err := b.measure(ctx, w, again(prompts, b.o.Requests))
	stop()
	if err := errors.Join(err, <-done); err != nil {
		return FaultRow{}, err
	}
	row := summary(pairs)
	row.Recovery, err = b.recovery(ctx, w, prompts[0])
	return row, err
}

func clientKill(ctx context.Context, b *faultBench) (FaultRow, error) {
	kill := func(ctx context.Context) error {
		return b.admin.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err()
	}
	if b.o.Fake { // it has no CLIENT KILL: the proxy does the same
		kill = func(context.Context) error {
			return errors.Join(b.proxy.Set(faultproxy.Faults{Refuse: true}), b.proxy.Set(faultproxy.Faults{}))
		}
	}
	return b.meanwhile(ctx, 30*time.Millisecond, kill)
}

func clientPause(ctx context.Context, b *faultBench) (FaultRow, error) {
	return b.meanwhile(ctx, 300*time.Millisecond, func(ctx context.Context) error {
		return b.admin.Do(ctx, "CLIENT", "PAUSE", "150", "ALL").Err()
	})
}
