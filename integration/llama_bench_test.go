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
		r.overhead(b, 6)
		r.throughput(b, 5)
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
	f := llamatest.Random(llamatest.Config{Seed: 1, Layers: 9, Heads: 12, KVHeads: 2, HeadDim: 64, FFN: 2048, Context: 4096, Type: 1, Untied: true})
	sayOnlyCharacters(f)
	model := filepath.Join(b.TempDir(), "random-55m.gguf")
	if err := os.WriteFile(model, f.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
	r := &llamaRig{rng: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))), vocab: 298}
	redis := testredis.Start(b)
	args := []string{"--parallel", fmt.Sprint(benchSlots), "--ctx-size", fmt.Sprint(benchSlots * 4096), "--threads", "1"}
	r.alone = testllama.StartWith(b, model, memoryDir(b), args...)
	for i := range r.servers {
		r.servers[i] = testllama.StartWith(b, model, memoryDir(b), append(args, "--cache-ram", "0")...)
		r.workers[i] = start(b, "worker", "--engine", "llamacpp", "--llama-url", r.servers[i].URL(), "--checkpoint", model,
			"--slots-dir", r.servers[i].SlotsDir, "--redis", redis.URL(), "--sequences", fmt.Sprint(benchSlots))
	}
	return r
}

// sayOnlyCharacters keeps a random model from ending its text and from bytes that are no character by themselves, which no trained model says
// often: llama-server leaves such tokens out of its stream, and the worker then generates in small steps.
func sayOnlyCharacters(f *llamatest.File) {
	for _, t := range f.Tensors {
		if t.Name != "output.weight" {
			continue
		}
		row := len(t.Data) / t.Shape[1]
		clear(t.Data[2*row : 3*row])         // the end of a text
		clear(t.Data[(3+128)*row : 259*row]) // the bytes from 0x80 on
	}
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

// direct returns the time of a completion by llama-server itself, and how much of it that computed, in ms.
func direct(b *testing.B, s *testllama.Server, tokens []int32, n int) (total, computing float64) {
	b.Helper()
	var out struct {
		Tokens  []int32
		Timings struct {
			Prompt    float64 `json:"prompt_ms"`
			Predicted float64 `json:"predicted_ms"`
		}
	}
	start := time.Now()
	post(b, s.URL()+"/completion", map[string]any{"prompt": tokens, "n_predict": n, "temperature": 0, "samplers": []string{"temperature"}, "return_tokens": true}, &out)
	if len(out.Tokens) == 0 {
		b.Error("no tokens")
	}
	return float64(time.Since(start).Microseconds()) / 1000, out.Timings.Prompt + out.Timings.Predicted
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

// secondReplica: what server A has computed, server B takes from Redis.
func (r *llamaRig) secondReplica(b *testing.B, rounds int) {
	var cold, warm []float64
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
		cold, warm = append(cold, c), append(warm, w)
	}
	r.row(b, "ttft-ratio", fmt.Sprintf("first token on the second replica, shared prefix of %d tokens; best of %d", prefixTokens, rounds),
		"%.0f ms (cold, through the worker)", "%.0f ms", slices.Min(cold), slices.Min(warm), "≤ 0.15")
}

// overhead: a prompt that nobody has sent, through the worker and without it. The time of each request is divided by the time that llama-server says it
// has computed for it, so that a machine with other work to do slows both: what is left is what everything around costs.
func (r *llamaRig) overhead(b *testing.B, rounds int) {
	const newTokens = 1000
	var alone, through []float64
	w := r.workers[0]
	for i := range rounds {
		for j := range 2 {
			tokens := r.tokens(newTokens)
			if (i+j)%2 == 0 {
				total, computing := direct(b, r.servers[0], tokens, answerTokens)
				alone = append(alone, total/computing)
				continue
			}
			const computed = "kvtier_llama_compute_seconds_total"
			before := w.metric(computed)
			total, _, _ := throughWorker(b, w, tokens, answerTokens)
			through = append(through, total/1000/(w.metric(computed)-before))
		}
	}
	r.row(b, "overhead-ratio", fmt.Sprintf("whole request ÷ computing, %d new tokens and %d generated, nothing to reuse; median of %d", newTokens, answerTokens, rounds),
		"%.3f", "%.3f", median(alone), median(through), "≤ 1.03")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// throughput: 16 clients whose prompts begin with the same 2,000 tokens.
func (r *llamaRig) throughput(b *testing.B, rounds int) {
	const clients, window = 16, 3 * time.Second
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
	var a, t float64
	for range rounds {
		a, t = a+run(alone)/float64(rounds), t+run(through)/float64(rounds)
	}
	r.row(b, "throughput-ratio", fmt.Sprintf("requests/s, hot prefix of %d tokens, %d clients, %d tokens in, %d out; mean of %d windows", prefixTokens, clients, tailTokens, answerTokens, rounds),
		"%.1f (its own cache in RAM)", "%.1f", a, t, "≥ 0.95")
}

// row adds to the table, and to what the benchmark reports.
func (r *llamaRig) row(b *testing.B, metric, what, aloneFormat, throughFormat string, alone, through float64, wanted string) {
	r.table = append(r.table, fmt.Sprintf("| %s | "+aloneFormat+" | "+throughFormat+" | %.3f | %s |", what, alone, through, through/alone, wanted))
	b.ReportMetric(through/alone, metric)
}
