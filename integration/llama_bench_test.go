package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/testllama"
	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// BenchmarkLlamaServer measures a worker beside llama-server against llama-server alone, with a model of 55 million random parameters, and prints
// the table of docs/ENGINES.md. What is compared runs in turns, in one run: make bench-llamacpp.
func BenchmarkLlamaServer(b *testing.B) {
	r := newLlamaRig(b)
	for b.Loop() {
		r.table = nil
		r.secondReplica(b, 3)
		r.overhead(b, 5)
		r.throughput(b, 2)
	}
	fmt.Println("\n| what | llama-server alone | worker + llama-server | ratio | wanted |\n|---|---|---|---|---|")
	for _, row := range r.table {
		fmt.Println(row)
	}
}

type llamaRig struct {
	servers [2]*testllama.Server
	workers [2]*process
	alone   *testllama.Server // with its own cache in RAM, as it comes
	rng     *rand.Rand
	vocab   int32
	table   []string
}

const (
	prefixTokens = 2000
	tailTokens   = 24
	answerTokens = 16
	benchSlots   = 4
)

func newLlamaRig(b *testing.B) *llamaRig {
	b.Helper()
	f := llamatest.Random(llamatest.Config{Seed: 1, Layers: 9, Heads: 12, KVHeads: 2, HeadDim: 64, FFN: 2048, Context: 4096, Type: 1})
	model := filepath.Join(b.TempDir(), "random-55m.gguf")
	if err := os.WriteFile(model, f.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
	r := &llamaRig{rng: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))), vocab: 298}
	redis := testredis.Start(b)
	args := []string{"--parallel", fmt.Sprint(benchSlots), "--ctx-size", fmt.Sprint(benchSlots * 4096), "--threads", "2"}
	r.alone = testllama.StartWith(b, model, memoryDir(b), args...)
	for i := range r.servers {
		r.servers[i] = testllama.StartWith(b, model, memoryDir(b), append(args, "--cache-ram", "0")...)
		r.workers[i] = start(b, "worker", "--engine", "llamacpp", "--llama-url", r.servers[i].URL(), "--checkpoint", model,
			"--slots-dir", r.servers[i].SlotsDir, "--redis", redis.URL(), "--sequences", fmt.Sprint(benchSlots))
	}
	return r
}

// memoryDir is a directory without a disk behind it, where there is one.
func memoryDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kvtier-slots-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// tokens draws a prompt that nobody has seen.
func (r *llamaRig) tokens(n int) []int32 {
	t := make([]int32, n)
	for i := range t {
		t[i] = 3 + r.rng.Int32N(r.vocab-3)
	}
	return t
}

// throughWorker returns the time of a completion, and to its first token, in ms.
func throughWorker(b *testing.B, p *process, tokens []int32, n int) (total, ttft float64, cached int) {
	b.Helper()
	var a answer
	start := time.Now()
	post(b, p.url+"/v1/completions", map[string]any{"prompt": tokens, "max_tokens": n, "temperature": 0}, &a)
	return float64(time.Since(start).Microseconds()) / 1000, a.KVTier.TTFT, a.Usage.Details.Cached
}

func direct(b *testing.B, s *testllama.Server, tokens []int32, n int) (total float64) {
	b.Helper()
	var out struct{ Tokens []int32 }
	start := time.Now()
	post(b, s.URL()+"/completion", map[string]any{"prompt": tokens, "n_predict": n, "temperature": 0, "samplers": []string{"temperature"}, "return_tokens": true}, &out)
	if len(out.Tokens) == 0 {
		b.Error("no tokens")
	}
	return float64(time.Since(start).Microseconds()) / 1000
}

// post may be called from any goroutine.
func post(b *testing.B, url string, body, out any) {
	b.Helper()
	if err := func() error {
		j, err := json.Marshal(body)
		if err != nil {
			return err
		}
		resp, err := http.Post(url, "application/json", bytes.NewReader(j))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s %w", resp.Status, got, err)
		}
		return json.Unmarshal(got, out)
	}(); err != nil {
		b.Errorf("%s: %v", url, err)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// secondReplica: what server A has computed, server B takes from Redis.
func (r *llamaRig) secondReplica(b *testing.B, rounds int) {
	var cold, warm, ratios []float64
	for i := range rounds {
		first, second := r.workers[i%2], r.workers[1-i%2] // both are cold in turn
		prefix := r.tokens(prefixTokens)
		_, c, cached := throughWorker(b, first, append(prefix, r.tokens(tailTokens)...), 1)
		if cached != 0 {
			b.Fatalf("%d cached tokens of a new prompt", cached)
		}
		time.Sleep(300 * time.Millisecond) // it stores in the background
		_, w, cached := throughWorker(b, second, append(prefix, r.tokens(tailTokens)...), 1)
		if cached < prefixTokens {
			b.Fatalf("the second replica found %d of %d tokens", cached, prefixTokens)
		}
		cold, warm, ratios = append(cold, c), append(warm, w), append(ratios, w/c)
	}
	r.row("second replica's TTFT, shared prefix of 2,000 tokens (median of %d)", "%.0f ms (cold)", "%.0f ms", rounds, median(cold), median(warm), median(ratios), "≤ 0.15")
	b.ReportMetric(median(ratios), "ttft-ratio")
}

// overhead: a prompt that nobody has sent, through the worker and without it.
func (r *llamaRig) overhead(b *testing.B, rounds int) {
	var alone, through, ratios []float64
	for i := range rounds {
		var a, t float64
		for j := range 2 {
			tokens := r.tokens(prefixTokens)
			if (i+j)%2 == 0 {
				a = direct(b, r.servers[0], tokens, answerTokens)
			} else {
				t, _, _ = throughWorker(b, r.workers[0], tokens, answerTokens)
			}
		}
		alone, through, ratios = append(alone, a), append(through, t), append(ratios, t/a)
	}
	r.row("2,000 new tokens and 16 generated, nothing to reuse (median of %d)", "%.0f ms", "%.0f ms", rounds, median(alone), median(through), median(ratios), "≤ 1.03")
	b.ReportMetric(median(ratios), "overhead-ratio")
}

// throughput: 16 clients whose prompts begin with the same 2,000 tokens.
func (r *llamaRig) throughput(b *testing.B, rounds int) {
	const clients, window = 16, 6 * time.Second
	prefix := r.tokens(prefixTokens)
	run := func(ask func(tokens []int32)) float64 {
		var done atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range clients {
			rng := rand.New(rand.NewPCG(uint64(i), 7)) // the same questions for both
			wg.Go(func() {
				for time.Since(begin) < window {
					tokens := slices.Clone(prefix)
					for range tailTokens {
						tokens = append(tokens, 3+rng.Int32N(r.vocab-3))
					}
					ask(tokens)
					done.Add(1)
				}
			})
		}
		wg.Wait()
		return float64(done.Load()) / time.Since(begin).Seconds()
	}
	alone := func(tokens []int32) { direct(b, r.alone, tokens, answerTokens) }
	through := func(tokens []int32) { throughWorker(b, r.workers[0], tokens, answerTokens) }
	// hot: every slot has the prefix
	var wg sync.WaitGroup
	for range 2 * benchSlots {
		for _, ask := range []func([]int32){alone, through} {
			tokens := append(slices.Clone(prefix), r.tokens(tailTokens)...)
			wg.Go(func() { ask(tokens) })
		}
	}
	wg.Wait()
	var as, ts, ratios []float64
	for range rounds {
		a, t := run(alone), run(through)
		as, ts, ratios = append(as, a), append(ts, t), append(ratios, t/a)
	}
	r.row("requests/s, hot prefix of 2,000 tokens, 16 clients, 24 tokens in, 16 out (median of %d)", "%.1f", "%.1f", rounds, median(as), median(ts), median(ratios), "≥ 0.95")
	b.ReportMetric(median(ratios), "throughput-ratio")
}

func (r *llamaRig) row(what, alone, through string, rounds int, a, t, ratio float64, wanted string) {
	r.table = append(r.table, fmt.Sprintf("| "+what+" | "+alone+" | "+through+" | %.2f | %s |", rounds, a, t, ratio, wanted))
}
