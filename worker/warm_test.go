package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

func warmUp(t testing.TB, r *worker.Replica, req worker.WarmRequest) worker.WarmResult {
	t.Helper()
	res, err := r.Warm(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// What is warmed is stored when the call returns, is what requests would compute, and leaves the hot tier as it was.
func TestWarmStoresWhatRequestsUse(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newReplica(t, v2, remote, nil), newReplica(t, v2, remote, nil)
	want := complete(t, newReplica(t, v2, nil, nil), worker.Request{Prompt: speech, MaxTokens: 8})

	res := warmUp(t, a, worker.WarmRequest{Prompt: speech})
	full := res.PromptTokens / 16 * 16
	if res.ComputedTokens != full || res.PresentTokens != 0 || res.StoredBytes < int64(full/16*32<<10) {
		t.Errorf("first: %+v, want %d tokens computed and stored", res, full)
	}
	if s := a.Cache().Stats(); s.HotBlocks != 0 {
		t.Errorf("%d blocks became hot", s.HotBlocks)
	}
	if res := warmUp(t, b, worker.WarmRequest{Prompt: speech + speech, Look: true}); res.ComputedTokens != 0 || res.PresentTokens != full || res.LoadedTokens != 0 {
		t.Errorf("looked up: %+v", res)
	}
	if res := warmUp(t, b, worker.WarmRequest{Prompt: speech}); res.ComputedTokens != 0 || res.PresentTokens != full || res.StoredBytes != 0 {
		t.Errorf("again, elsewhere: %+v", res)
	}
	got := complete(t, b, worker.Request{Prompt: speech, MaxTokens: 8})
	if !slices.Equal(got.Tokens, want.Tokens) {
		t.Errorf("output differs: %v, without a cache %v", got.Tokens, want.Tokens)
	}
	if got.CachedTokens() == 0 {
		t.Errorf("nothing of the warmed prompt was used: %v", got.Miss)
	}
	longer := warmUp(t, b, worker.WarmRequest{Prompt: speech + speech})
	if longer.PresentTokens == 0 || longer.LoadedTokens != longer.PresentTokens || longer.ComputedTokens+longer.PresentTokens != longer.PromptTokens/16*16 {
		t.Errorf("a longer prompt: %+v", longer)
	}
}

func TestWarmMendsAHole(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	r := newReplica(t, v2, remote, nil)
	first := warmUp(t, r, worker.WarmRequest{Prompt: speech})
	id := first.Identity
	hashes := block.NewChain(nil, id, "", 16).AppendHashes(nil, tokenizerOf(r).Encode(speech))
	if n, err := remote.Delete(t.Context(), []string{block.Key(id.Variant(), first.Epoch, hashes[2], 0)}); n != 1 || err != nil {
		t.Fatalf("deleted %d, %v", n, err)
	}
	if res := warmUp(t, r, worker.WarmRequest{Prompt: speech}); res.PresentTokens != 32 || res.ComputedTokens != first.ComputedTokens-32 {
		t.Errorf("after the loss of the third block: %+v", res)
	}
	if res := warmUp(t, r, worker.WarmRequest{Prompt: speech}); res.ComputedTokens != 0 {
		t.Errorf("mended, and still %+v", res)
	}
}

func tokenizerOf(r *worker.Replica) engine.Tokenizer {
	e, _ := r.Resident()
	return e.Tokenizer()
}

func TestWarmRefuses(t *testing.T) {
	r := newReplica(t, v2, memstore.New(memstore.Options{}), nil)
	other := block.Identity{Weights: block.Digest{1}, Layout: block.Digest{2}}.Variant()
	for name, c := range map[string]struct {
		r    *worker.Replica
		req  worker.WarmRequest
		want error
	}{
		"another variant": {r, worker.WarmRequest{Prompt: speech, Variant: other}, worker.ErrVariant},
		"no prompt":       {r, worker.WarmRequest{}, worker.ErrRequest},
		"no remote tier":  {newReplica(t, v2, nil, nil), worker.WarmRequest{Prompt: speech}, worker.ErrTier},
	} {
		if _, err := c.r.Warm(t.Context(), c.req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// serving has r answer a request, which goes on after its first token when finish is called; that waits for its end.
func serving(t *testing.T, r *worker.Replica) (finish func()) {
	began, goOn, served := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	hold := sync.OnceFunc(func() {
		close(began)
		<-goOn
	})
	go func() {
		_, err := r.Stream(context.Background(), worker.Request{Prompt: "Good", MaxTokens: 4, NoCache: true}, func(worker.Event) { hold() })
		served <- err
	}()
	<-began
	return func() {
		close(goOn)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// While somebody waits for an answer, a warm-up computes nothing.
func TestWarmMakesWay(t *testing.T) {
	r := newReplica(t, v2, memstore.New(memstore.Options{}), nil)
	finish := serving(t, r)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if res, err := r.Warm(ctx, worker.WarmRequest{Prompt: speech}); !errors.Is(err, context.DeadlineExceeded) || res.ComputedTokens != 0 {
		t.Errorf("beside a request: %+v, %v", res, err)
	}
	finish()
	if res := warmUp(t, r, worker.WarmRequest{Prompt: speech}); res.ComputedTokens == 0 {
		t.Errorf("afterwards: %+v", res)
	}
}

func TestWarmPins(t *testing.T) {
	now := time.Now()
	remote := memstore.New(memstore.Options{Now: func() time.Time { return now }})
	r := newReplica(t, v2, remote, nil)
	res := warmUp(t, r, worker.WarmRequest{Prompt: speech, Pin: true})
	if res.PinnedTokens != res.PromptTokens/16*16 {
		t.Errorf("%+v", res)
	}
	other := warmUp(t, r, worker.WarmRequest{Prompt: "Another prompt altogether, long enough for a block or two, which nobody pins"})
	if other.ComputedTokens == 0 {
		t.Fatalf("%+v", other)
	}
	now = now.Add(1000 * time.Hour)
	if again := warmUp(t, r, worker.WarmRequest{Prompt: speech}); again.ComputedTokens != 0 {
		t.Errorf("a pinned prompt expired: %+v", again)
	}
}

func TestWarmOverHTTP(t *testing.T) {
	r := newReplica(t, v2, memstore.New(memstore.Options{}), nil)
	s := serve(t, r, worker.HandlerOptions{})
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	status, text := ask("GET", "/v1/warm", "")
	var info worker.WarmInfo
	if err := json.Unmarshal([]byte(text), &info); err != nil || status != 200 || !info.Shared || info.BlockTokens != 16 || info.Label != v2 {
		t.Errorf("info: %d %s", status, text)
	}
	for body, want := range map[string]int{
		`{"prompt":"` + strings.Repeat("My lord, ", 30) + `","variant":"` + info.Variant.String() + `"}`: 200,
		`{"tokens":[1,2,3]}`: 200, // no full block: nothing to do
		`{"prompt":"a","variant":"` + "b" + strings.Repeat("a", 15) + `"}`: 409,
		`{"prompt":"a","variant":"x"}`:                                     400,
		`{"prompt":"a","tokens":[1]}`:                                      400,
		`{}`:                                                               400,
		`{"tokens":[-1]}`:                                                  400,
		`{"prompt":"a","color":"red"}`:                                     400,
	} {
		if status, text := ask("POST", "/v1/warm", body); status != want {
			t.Errorf("POST /v1/warm %.60s: %d, want %d: %s", body, status, want, text)
		}
	}
	status, text = ask("POST", "/v1/warm/tokens", `{"prompts":["Good morrow","Kate"]}`)
	var tokens worker.TokenizeAnswer
	if err := json.Unmarshal([]byte(text), &tokens); err != nil || status != 200 || len(tokens.Tokens) != 2 || tokens.Variant != info.Variant {
		t.Errorf("tokens: %d %s", status, text)
	}
	status, text = ask("POST", "/v1/warm", `{"prompt":"`+strings.Repeat("A measure, ", 30)+`","measure":true}`)
	var m worker.WarmAnswer
	if err := json.Unmarshal([]byte(text), &m); err != nil || status != 200 || m.ComputedTokens == 0 || m.EncodedBytes == 0 || m.EncodedBytes > m.StoredBytes {
		t.Errorf("measure: %d %s", status, text)
	}
	if again := warmUp(t, r, worker.WarmRequest{Prompt: strings.Repeat("A measure, ", 30)}); again.PresentTokens != 0 {
		t.Error("a measurement was stored")
	}
}

// A request that comes in the middle of a computation ends it. Later it is computed again, in smaller pieces, and is right.
func TestWarmIsInterrupted(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	c, err := tiered.New(tiered.Options{Layout: watch.Layout(), Remote: memstore.New(memstore.Options{}), HotBytes: 1 << 20, ProbeTimeout: 10 * time.Second, FetchTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	r, err := worker.NewReplica(worker.Options{Engine: watch, Cache: c, Gate: gate.Always})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.Background())
	want := complete(t, r, worker.Request{Prompt: speech, MaxTokens: 8, NoCache: true})
	came := make(chan struct{})
	var request sync.WaitGroup
	interrupt := sync.OnceFunc(func() {
		request.Go(func() {
			if _, err := r.Complete(context.Background(), worker.Request{Prompt: "Good", MaxTokens: 4, NoCache: true}); err != nil {
				t.Error(err)
			}
		})
		<-came
	})
	watch.before = func(c call) error {
		switch {
		case c.seq == 3 && c.pos == 0:
			close(came)
		case c.seq == 2:
			interrupt()
		}
		return nil
	}
	res := warmUp(t, r, worker.WarmRequest{Prompt: speech})
	request.Wait()
	if full := res.PromptTokens / 16 * 16; res.ComputedTokens != full {
		t.Errorf("%+v, want %d tokens computed", res, full)
	}
	calls, _ := watch.log()
	calls = slices.DeleteFunc(calls, func(c call) bool { return c.seq != 2 })
	if calls[0].pos != 0 || calls[1].pos != 0 || calls[1].tokens != calls[0].tokens/2 {
		t.Errorf("computed %+v after %+v was interrupted", calls[1], calls[0])
	}
	watch.before = nil
	got := complete(t, r, worker.Request{Prompt: speech, MaxTokens: 8})
	if !slices.Equal(got.Tokens, want.Tokens) || got.RemoteTokens == 0 {
		t.Errorf("%v with %d tokens loaded, want %v", got.Tokens, got.RemoteTokens, want.Tokens)
	}
}

// Requests that wait for an exchange of weights do not keep the warm-up from going on that the exchange waits for.
func TestWarmIsNotInTheWayOfASwap(t *testing.T) {
	r := newReplica(t, v2, memstore.New(memstore.Options{}), nil)
	s := serve(t, r, worker.HandlerOptions{})
	finish := serving(t, r)
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := r.Warm(t.Context(), worker.WarmRequest{Prompt: speech}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, s, `kvtier_running_sequences{priority="background"}`, "1")
	all.Go(func() {
		next := func(context.Context) (engine.Engine, error) { return open(t, v1, llama.Options{}), nil }
		if err := r.SwapWeights(t.Context(), v1, next); err != nil {
			t.Error(err)
		}
	})
	if !poll(r.Latched) {
		t.Fatal("the exchange does not wait")
	}
	for range 2 {
		all.Go(func() {
			if res, err := r.Complete(t.Context(), worker.Request{Prompt: "Kate", MaxTokens: 2}); err != nil || res.Label != v1 {
				t.Errorf("answered by %q: %v", res.Label, err)
			}
		})
	}
	eventually(t, s, `kvtier_running_sequences{priority="serving"}`, "3")
	finish()
	all.Wait()
}
