package worker_test

import (
	"context"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/worker"
)

// slow is a store behind a link of a given speed: questions take a round trip, values take their turn.
type slow struct {
	store.Store
	mu   sync.Mutex
	rtt  time.Duration
	rate float64 // bytes per second; 0: no limit
	free time.Time
}

func (s *slow) set(rtt time.Duration, rate float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rtt, s.rate, s.free = rtt, rate, time.Time{}
}

// pass takes what n bytes take on the link, and returns ctx's error if that ends before.
func (s *slow) pass(ctx context.Context, n int) error {
	s.mu.Lock()
	now := time.Now()
	until := now
	if s.rate > 0 {
		if s.free.Before(now) {
			s.free = now
		}
		s.free = s.free.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
		until = s.free
	}
	s.mu.Unlock()
	return sleepUntil(ctx, until)
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-time.After(time.Until(t)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slow) ask(ctx context.Context) error {
	s.mu.Lock()
	rtt := s.rtt
	s.mu.Unlock()
	return sleepUntil(ctx, time.Now().Add(rtt))
}

func (s *slow) Lead(ctx context.Context, keys []string) (int, error) {
	if err := s.ask(ctx); err != nil {
		return 0, err
	}
	return s.Store.Lead(ctx, keys)
}

func (s *slow) Get(ctx context.Context, keys []string, bufs [][]byte) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		late := s.ask(ctx)
		for n, err := range s.Store.Get(ctx, keys, bufs) {
			if late == nil {
				late = s.pass(ctx, n)
			}
			if late != nil {
				n, err = 0, late
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

// randomPrompt is a prompt that nobody has seen.
func randomPrompt(n, vocab int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(rand.IntN(vocab))
	}
	return tokens
}

// rounds runs each of several requests once per round, in turn, so that whatever else the machine does strikes them alike.
func rounds(b *testing.B, ways ...func() time.Duration) (medians, p99 []float64) {
	all := make([][]float64, len(ways))
	for b.Loop() {
		for i, way := range ways {
			all[i] = append(all[i], way().Seconds())
		}
	}
	for i := range all {
		slices.Sort(all[i])
		medians = append(medians, all[i][len(all[i])/2])
		p99 = append(p99, all[i][len(all[i])*99/100])
	}
	return medians, p99
}

const (
	gatePrompt = 1505 // a prefix of 94 full blocks, and one token to compute
	gateWarm   = 6    // requests before anything is measured, so that there are estimates
)

// Time to first token with the gate against the same replica without any cache, in turn, in one run. The targets are in docs/decisions/013-gate.md.
func BenchmarkGate(b *testing.B) {
	ttft := func(b *testing.B, r *worker.Replica, tokens []int32, noCache bool) time.Duration {
		return complete(b, r, worker.Request{Tokens: tokens, MaxTokens: 1, NoCache: noCache}).TTFT
	}
	auto := func(o *worker.Options) { o.Gate = gate.Auto }
	always := func(o *worker.Options) { o.Gate = gate.Always }

	reuse := func(b *testing.B, remote store.Store) {
		writer, reader := newReplica(b, v2, remote, auto), newReplica(b, v2, remote, auto)
		vocab := vocabOf(reader)
		stored := func() []int32 {
			tokens := randomPrompt(gatePrompt, vocab)
			complete(b, writer, worker.Request{Tokens: tokens})
			flush(b, writer)
			return tokens
		}
		for range gateWarm {
			complete(b, reader, worker.Request{Tokens: stored()})
		}
		var tokens []int32
		remoteTokens, n := 0, 0
		m, _ := rounds(b,
			func() time.Duration { tokens = stored(); return ttft(b, reader, tokens, true) },
			func() time.Duration {
				res := complete(b, reader, worker.Request{Tokens: tokens, MaxTokens: 1})
				remoteTokens, n = remoteTokens+res.RemoteTokens, n+1
				return res.TTFT
			})
		b.ReportMetric(m[1]/m[0], "of-cold")
		b.ReportMetric(m[0]*1e3, "cold-ms")
		b.ReportMetric(float64(remoteTokens)/float64(n), "remote-tokens")
	}
	b.Run("reuse=full/remote=memory", func(b *testing.B) { reuse(b, memstore.New(memstore.Options{MaxBytes: 1 << 30})) })
	b.Run("reuse=full/remote=redis", func(b *testing.B) {
		s, err := redisstore.OpenURL(testredis.Start(b).URL())
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		reuse(b, s)
	})

	// The link is as fast as the engine: fetching everything takes as long as computing everything.
	b.Run("reuse=full/link=even", func(b *testing.B) {
		link := &slow{Store: memstore.New(memstore.Options{MaxBytes: 1 << 30})}
		writer, both, load := newReplica(b, v2, link.Store, auto), newReplica(b, v2, link, auto), newReplica(b, v2, link, always)
		vocab := vocabOf(both)
		stored := func() []int32 {
			tokens := randomPrompt(gatePrompt, vocab)
			complete(b, writer, worker.Request{Tokens: tokens})
			flush(b, writer)
			return tokens
		}
		e, _ := both.Resident()
		var tokens []int32
		// The machine is not equally fast all the time: the link is as slow as the engine was just now.
		compute := func() time.Duration {
			tokens = stored()
			d := ttft(b, both, tokens, true)
			link.set(300*time.Microsecond, 94*float64(e.Layout().BlockBytes())/d.Seconds())
			return d
		}
		for range gateWarm {
			compute()
			complete(b, both, worker.Request{Tokens: tokens})
		}
		remoteTokens, n := 0, 0
		m, _ := rounds(b,
			compute,
			func() time.Duration { return ttft(b, load, tokens, false) },
			func() time.Duration {
				res := complete(b, both, worker.Request{Tokens: tokens, MaxTokens: 1})
				remoteTokens, n = remoteTokens+res.RemoteTokens, n+1
				return res.TTFT
			})
		b.ReportMetric(m[2]/min(m[0], m[1]), "of-either")
		b.ReportMetric(m[1]/m[0], "load/compute")
		b.ReportMetric(m[0]*1e3, "cold-ms")
		b.ReportMetric(float64(remoteTokens)/float64(n), "remote-tokens")
	})

	fresh := func(b *testing.B, r *worker.Replica) {
		vocab := vocabOf(r)
		for range gateWarm {
			complete(b, r, worker.Request{Tokens: randomPrompt(gatePrompt, vocab)})
		}
		m, p := rounds(b,
			func() time.Duration { return ttft(b, r, randomPrompt(gatePrompt, vocab), true) },
			func() time.Duration { return ttft(b, r, randomPrompt(gatePrompt, vocab), false) })
		b.ReportMetric(m[1]/m[0], "of-cold")
		b.ReportMetric(p[1]/p[0], "p99-of-cold")
		b.ReportMetric((m[1]-m[0])*1e6, "added-us")
	}
	b.Run("reuse=none/remote=memory", func(b *testing.B) {
		fresh(b, newReplica(b, v2, memstore.New(memstore.Options{MaxBytes: 256 << 20}), auto))
	})
	b.Run("reuse=none/remote=redis", func(b *testing.B) {
		s, err := redisstore.OpenURL(testredis.Start(b).URL())
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		fresh(b, newReplica(b, v2, s, auto))
	})
	for _, rtt := range []time.Duration{50, 200, 1000} {
		b.Run("reuse=none/rtt="+(rtt*time.Millisecond).String(), func(b *testing.B) {
			link := &slow{Store: memstore.New(memstore.Options{MaxBytes: 256 << 20}), rtt: rtt * time.Millisecond}
			fresh(b, newReplica(b, v2, link, auto))
		})
	}
	b.Run("breaker=open", func(b *testing.B) {
		s, err := redisstore.OpenURL("redis://127.0.0.1:1") // nobody is there
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		breaker := store.WithBreaker(s, store.BreakerOptions{Faults: 1, MinDelay: time.Hour})
		_ = breaker.Ping(b.Context())
		if breaker.State() != store.BreakerOpen {
			b.Fatal(breaker.State())
		}
		fresh(b, newReplica(b, v2, breaker, auto))
	})
}

func vocabOf(r *worker.Replica) int {
	e, _ := r.Resident()
	return e.Tokenizer().Vocab()
}
