package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

// tiny is a real engine, small enough for tests that are about order.
func tiny(t testing.TB) engine.Engine {
	t.Helper()
	file := llamatest.Random(llamatest.Config{Seed: 1, Context: 2048}).Bytes()
	m, err := llama.OpenReader(bytes.NewReader(file), int64(len(file)), "tiny", llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m // the replica closes it
}

// Whatever runs beside a request, in whatever order: its tokens are those of a lone run.
func TestOutputDoesNotDependOnWhatRunsBeside(t *testing.T) {
	real := tiny(t)
	alone := replicaOf(t, tiny(t), nil)
	watch := &watched{Engine: real}
	engines := map[string]*worker.Replica{
		"side by side": replicaOf(t, &watched{Engine: tiny(t)}, func(o *worker.Options) { o.MaxSequences, o.PrefillChunk = 3, 24 }),
		"by Step":      replicaOf(t, tiny(t), func(o *worker.Options) { o.MaxSequences, o.PrefillChunk = 3, 24 }),
		"in batches":   replicaOf(t, batching{watch}, func(o *worker.Options) { o.MaxSequences, o.PrefillChunk = 3, 24 }),
	}
	known := map[string][]int32{}
	var mu sync.Mutex
	want := func(req worker.Request) []int32 {
		key := fmt.Sprintf("%+v", req)
		mu.Lock()
		defer mu.Unlock()
		if _, ok := known[key]; !ok {
			req.NoCache = true
			known[key] = complete(t, alone, req).Tokens
		}
		return known[key]
	}
	for name, r := range engines {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				requests := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) worker.Request {
					return worker.Request{
						Prompt:      speech[:rapid.SampledFrom([]int{1, 40, 100, 200}).Draw(rt, "prompt")],
						MaxTokens:   rapid.SampledFrom([]int{0, 1, 6, 12}).Draw(rt, "max"),
						Temperature: rapid.SampledFrom([]float64{0, 1}).Draw(rt, "temperature"),
						Seed:        rapid.Uint64Range(0, 2).Draw(rt, "seed"),
						Salt:        rapid.SampledFrom([]string{"", "tenant"}).Draw(rt, "salt"),
						Priority:    rapid.SampledFrom([]worker.Priority{worker.Serving, worker.Serving, worker.Background}).Draw(rt, "priority"),
						NoCache:     rapid.IntRange(0, 4).Draw(rt, "cache") == 0,
					}
				}), 1, 6).Draw(rt, "requests")
				var all sync.WaitGroup
				for _, req := range requests {
					all.Go(func() {
						got, err := r.Complete(t.Context(), req)
						if err != nil {
							t.Error(err)
						} else if !slices.Equal(got.Tokens, want(req)) {
							t.Errorf("%+v: %v, alone %v", req, got.Tokens, want(req))
						}
					})
				}
				all.Wait()
			})
		})
	}
	calls, _ := watch.log()
	if !slices.ContainsFunc(calls, func(c call) bool { return c.batch > 1 }) {
		t.Error("no two sequences were ever computed together")
	}
}

// A long prompt does not hold up those who generate, nor they it.
func TestALongPromptDoesNotStarveDecoding(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, batching{watch}, func(o *worker.Options) { o.PrefillChunk = 32 })
	long := make([]int32, 1500)
	for i := range long {
		long[i] = int32(3 + i*7%200)
	}
	chunked := make(chan struct{})
	once := sync.OnceFunc(func() { close(chunked) })
	watch.before = func(c call) error {
		if c.seq == 2 {
			once()
			time.Sleep(time.Millisecond) // the model is tiny: who generates has to be back in the queue before the chunk is through
		}
		return nil
	}
	var prompt sync.WaitGroup
	begin := sync.OnceFunc(func() { // who generates goes on when the prompt has begun
		prompt.Go(func() {
			if _, err := r.Complete(t.Context(), worker.Request{Tokens: long, MaxTokens: 0}); err != nil {
				t.Error(err)
			}
		})
		<-chunked
	})
	if _, err := r.Stream(t.Context(), worker.Request{Prompt: speech, MaxTokens: 300, NoCache: true}, func(worker.Event) { begin() }); err != nil {
		t.Fatal(err)
	}
	prompt.Wait()
	calls, _ := watch.log()
	first := slices.IndexFunc(calls, func(c call) bool { return c.tokens == 32 && c.seq == 2 })
	last := len(calls) - 1
	for ; calls[last].tokens == 1; last-- {
	}
	chunks, steps := 0, 0
	for _, c := range calls[first : last+1] {
		if c.tokens > 1 {
			chunks++
		} else {
			steps++
		}
	}
	if chunks < len(long)/32 {
		t.Fatalf("%d chunks", chunks)
	}
	// One between any two; half of that is left for a machine that is late.
	if steps < chunks/2 {
		t.Errorf("%d decode steps between %d chunks", steps, chunks)
	}
}

func TestBackgroundWorkYieldsAtChunkBorders(t *testing.T) {
	for name, wrap := range map[string]func(*watched) engine.Engine{
		"side by side": func(e *watched) engine.Engine { return e }, "in batches": func(e *watched) engine.Engine { return batching{e} },
	} {
		t.Run(name, func(t *testing.T) {
			watch := &watched{Engine: tiny(t)}
			r := replicaOf(t, wrap(watch), func(o *worker.Options) { o.PrefillChunk = 16 })
			long := make([]int32, 400)
			for i := range long {
				long[i] = int32(3 + i*7%200)
			}
			var job sync.WaitGroup
			begun := make(chan struct{})
			watch.before = func(c call) error {
				if c.seq == 1 && c.pos == 32 {
					close(begun)
				}
				return nil
			}
			job.Go(func() {
				res, err := r.Complete(t.Context(), worker.Request{Tokens: long, Priority: worker.Background})
				if err != nil || res.ComputedTokens != 400 {
					t.Errorf("the job: %v, %d tokens", err, res.ComputedTokens)
				}
			})
			<-begun
			complete(t, r, worker.Request{Prompt: speech, MaxTokens: 20})
			calls, _ := watch.log()
			first := slices.IndexFunc(calls, func(c call) bool { return c.seq == 2 })
			last := len(calls) - 1
			for ; calls[last].seq == 1; last-- { // the job goes on as soon as the request is answered
			}
			between := 0
			for _, c := range calls[first:last] {
				if c.seq == 1 {
					between++
				}
			}
			if between > 1 { // the chunk that was under way
				t.Errorf("%d chunks of the job while a request ran", between)
			}
			job.Wait()
		})
	}
}

// Requests that come while their prefix is being computed wait for it and hit.
func TestANewPrefixIsComputedOnce(t *testing.T) {
	for name, first := range map[string]worker.Priority{"serving": worker.Serving, "background": worker.Background} {
		t.Run(name, func(t *testing.T) {
			watch := &watched{Engine: tiny(t)}
			r := replicaOf(t, watch, func(o *worker.Options) { o.PrefillChunk = 32 })
			prefix := make([]int32, 480)
			for i := range prefix {
				prefix[i] = int32(3 + i*7%200)
			}
			var others sync.WaitGroup
			begin := sync.OnceFunc(func() {
				for i := range 3 {
					others.Go(func() {
						res, err := r.Complete(t.Context(), worker.Request{Tokens: append(slices.Clone(prefix), int32(100+i), 5), MaxTokens: 0})
						if err != nil || res.HotTokens != len(prefix) {
							t.Errorf("%d tokens hit, want %d: %v", res.HotTokens, len(prefix), err)
						}
					})
				}
			})
			watch.before = func(call) error { begin(); return nil }
			if _, err := r.Complete(t.Context(), worker.Request{Tokens: append(slices.Clone(prefix), 7, 8, 9), Priority: first}); err != nil {
				t.Fatal(err)
			}
			others.Wait()
			if _, n := watch.log(); n != len(prefix)+3+3*2 {
				t.Errorf("%d tokens computed, want the prefix once and four endings", n)
			}
		})
	}
}

// Who waits for a request that fails, or does not get on, computes by itself.
func TestAPrefixThatDoesNotCome(t *testing.T) {
	broken := errors.New("broken")
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, watch, func(o *worker.Options) { o.PrefixWait = 1 })
	begun, release := make(chan struct{}), make(chan struct{})
	watch.before = func(c call) error {
		if c.seq == 1 {
			close(begun)
			<-release
			return broken
		}
		return nil
	}
	failed := make(chan error)
	go func() {
		_, err := r.Complete(t.Context(), worker.Request{Prompt: speech})
		failed <- err
	}()
	<-begun
	if got := complete(t, r, worker.Request{Prompt: speech}); got.HotTokens != 0 {
		t.Errorf("%d tokens hit", got.HotTokens)
	}
	close(release)
	if err := <-failed; !errors.Is(err, broken) {
		t.Errorf("the first: %v", err)
	}
	if got := complete(t, r, worker.Request{Prompt: speech}); got.HotTokens == 0 {
		t.Error("nothing hit afterwards")
	}
}

// The choices of a request share its prompt: it is computed once, but for the tokens behind the last full block.
func TestChoicesShareThePrompt(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, batching{watch}, nil)
	req := worker.Request{Prompt: speech, MaxTokens: 8, Temperature: 1, Seed: 3, N: 4}
	res := complete(t, r, req)
	if len(res.Others) != 3 {
		t.Fatalf("%d choices", 1+len(res.Others))
	}
	tail := res.PromptTokens - (res.PromptTokens-1)/16*16
	if _, n := watch.log(); n != res.PromptTokens+3*tail+4*7 {
		t.Errorf("%d tokens computed of a prompt of %d and 4 choices of 8", n, res.PromptTokens)
	}
	req.N, req.NoCache = 1, true
	if want := complete(t, r, req); !slices.Equal(res.Tokens, want.Tokens) {
		t.Errorf("first choice %q, alone %q", res.Text, want.Text)
	}
	if res.Text == res.Others[0].Text && res.Text == res.Others[1].Text {
		t.Errorf("choices do not differ: %q", res.Text)
	}
	req.N, req.Temperature = 4, 0
	greedy := complete(t, r, req)
	for _, c := range greedy.Others {
		if !slices.Equal(c.Tokens, greedy.Tokens) {
			t.Errorf("greedy choices differ: %q and %q", c.Text, greedy.Text)
		}
	}
}

func TestStreamIsTheAnswerInPieces(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	plain := complete(t, r, worker.Request{Prompt: speech, MaxTokens: 60})
	words := strings.Fields(plain.Text)
	stop := words[len(words)/2] + " " + words[len(words)/2+1][:1]
	for name, req := range map[string]worker.Request{
		"to the end": {Prompt: speech, MaxTokens: 60}, "stopped": {Prompt: speech, MaxTokens: 60, Stop: []string{"\x00", stop}},
		"one token": {Prompt: speech, MaxTokens: 1}, "nothing": {Prompt: speech},
		"choices": {Prompt: speech, MaxTokens: 10, N: 3, Temperature: 1, Stop: []string{"e"}},
	} {
		t.Run(name, func(t *testing.T) {
			req.Logprobs, req.TopLogprobs = true, 2
			texts, finish := make([]string, max(1, req.N)), make([]string, max(1, req.N))
			tokens, probs := make([][]int32, max(1, req.N)), make([][]worker.TokenLogprobs, max(1, req.N))
			res, err := r.Stream(t.Context(), req, func(e worker.Event) {
				if finish[e.Choice] != "" {
					t.Errorf("an event behind the last of choice %d", e.Choice)
				}
				texts[e.Choice] += e.Text
				tokens[e.Choice] = append(tokens[e.Choice], e.Tokens...)
				probs[e.Choice] = append(probs[e.Choice], e.Logprobs...)
				finish[e.Choice] = e.FinishReason
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range append([]worker.Choice{res.Choice}, res.Others...) {
				if texts[i] != c.Text || finish[i] != c.FinishReason || len(probs[i]) != len(c.Logprobs) || !slices.Equal(tokens[i], c.Tokens[:len(tokens[i])]) {
					t.Errorf("choice %d: pieces %q (%s, %d tokens, %d with logprobs), the answer %q (%s, %d with logprobs)",
						i, texts[i], finish[i], len(tokens[i]), len(probs[i]), c.Text, c.FinishReason, len(c.Logprobs))
				}
				for j, p := range c.Logprobs {
					if p.Token != c.Tokens[j] || p.Logprob > 0 || len(p.Top) != 2 || p.Top[0].Logprob < p.Logprob {
						t.Errorf("token %d: %+v", j, p)
					}
				}
			}
			if name == "stopped" && (res.FinishReason != "stop" || res.Text != plain.Text[:strings.Index(plain.Text, stop)]) {
				t.Errorf("%s: %q, want %q before %q", res.FinishReason, res.Text, plain.Text, stop)
			}
		})
	}
}

// An engine that samples by itself gives what the worker's sampler would.
func TestAGeneratorGivesTheSame(t *testing.T) {
	plain, g := newReplica(t, v2, nil, nil), replicaOf(t, generating{open(t, v2, llama.Options{})}, nil)
	for _, req := range []worker.Request{
		{Prompt: speech, MaxTokens: 20}, {Prompt: speech, MaxTokens: 20, Temperature: 1, Seed: 5}, {Prompt: speech}, {Prompt: speech, MaxTokens: 1},
		{Prompt: speech, MaxTokens: 40, Stop: []string{"\n"}}, {Prompt: speech, MaxTokens: 5, N: 2, Temperature: 1}, {Prompt: speech, MaxTokens: 3, NoCache: true},
	} {
		want, got := complete(t, plain, req), complete(t, g, req)
		if got.Text != want.Text || !slices.Equal(got.Tokens, want.Tokens) || got.FinishReason != want.FinishReason || len(got.Others) != len(want.Others) {
			t.Errorf("%+v: %q (%s), want %q (%s)", req, got.Text, got.FinishReason, want.Text, want.FinishReason)
		}
		if got.HotTokens != want.HotTokens || got.TTFT == 0 {
			t.Errorf("%+v: %d hot tokens, want %d; TTFT %v", req, got.HotTokens, want.HotTokens, got.TTFT)
		}
	}
	res := complete(t, g, worker.Request{Prompt: speech, MaxTokens: 2, Logprobs: true})
	if len(res.Logprobs) != 2 || res.Logprobs[0].Logprob != -1 || len(res.Logprobs[0].Top) != 0 {
		t.Errorf("logprobs %+v", res.Logprobs)
	}
}

// One sequence's trouble stays its own, and nobody's place is lost.
func TestAnEngineThatFails(t *testing.T) {
	broken := errors.New("broken")
	watch := &watched{Engine: tiny(t), refuse: broken} // no batch ever works
	r := replicaOf(t, batching{watch}, func(o *worker.Options) { o.MaxSequences, o.PrefixWait = 2, -1 })
	watch.before = func(c call) error {
		if c.seq == 1 && c.pos > 60 {
			return broken
		}
		return nil
	}
	var all sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		all.Go(func() {
			_, errs[i] = r.Complete(t.Context(), worker.Request{Tokens: make([]int32, 40), MaxTokens: 60, NoCache: true})
		})
	}
	all.Wait()
	if n := len(slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })); n != 1 || !errors.Is(errors.Join(errs...), broken) {
		t.Errorf("%v, want one that fails", errs)
	}
	for range 4 {
		complete(t, r, worker.Request{Prompt: speech, MaxTokens: 1})
	}
}

func TestWhoLeavesGivesUpThePlace(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	for name, e := range map[string]engine.Engine{"side by side": watch, "in batches": batching{watch}} {
		t.Run(name, func(t *testing.T) {
			r := replicaOf(t, e, func(o *worker.Options) { o.MaxSequences = 1 })
			for range 3 {
				ctx, cancel := context.WithCancel(t.Context())
				n := 0
				res, err := r.Stream(ctx, worker.Request{Prompt: speech, MaxTokens: 500}, func(worker.Event) {
					if n++; n == 5 {
						cancel()
					}
				})
				if !errors.Is(err, context.Canceled) || len(res.Tokens) < 5 || len(res.Tokens) > 20 || res.TTFT == 0 {
					t.Errorf("%d tokens, TTFT %v, %v", len(res.Tokens), res.TTFT, err)
				}
			}
			complete(t, r, worker.Request{Prompt: speech, MaxTokens: 1})
		})
		watch.Engine = tiny(t) // the replica closes its engine
	}
}

func TestSequencesAreBoundedInBytes(t *testing.T) {
	e := tiny(t)
	perSpan := e.(engine.Sized).SequenceBytes(1)
	if want := int64(2 * 256 * e.Layout().TokenBytes()); perSpan < want || perSpan > want+1024 {
		t.Fatalf("%d bytes for a sequence of one token, want 256 tokens of float32: %d", perSpan, want)
	}
	r := replicaOf(t, e, func(o *worker.Options) { o.MaxSequenceBytes = 2 * perSpan })
	complete(t, r, worker.Request{Prompt: "a", MaxTokens: 10})
	_, err := r.Complete(t.Context(), worker.Request{Prompt: "a", MaxTokens: 600})
	if bad, ok := errors.AsType[*worker.RequestError](err); !ok || bad.Code != "too_large" {
		t.Errorf("more than there is: %v", err)
	}
	if _, err := r.Complete(t.Context(), worker.Request{Prompt: "a", MaxTokens: 10, N: 3}); !errors.Is(err, worker.ErrRequest) {
		t.Errorf("three choices: %v", err)
	}
}
