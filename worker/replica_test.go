package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/store/storetest"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/workertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, name string, o llama.Options) engine.Engine {
	t.Helper()
	b, err := fs.ReadFile(models.FS, name+".gguf")
	if err != nil {
		t.Fatal(err)
	}
	m, err := llama.OpenReader(bytes.NewReader(b), int64(len(b)), name, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const (
	v1 = "shakespeare-3m-v1"
	v2 = "shakespeare-3m-v2"
)

// newReplica starts a worker on a checkpoint, in front of a remote tier or of none.
func newReplica(t testing.TB, name string, remote store.Store, change func(*worker.Options)) *worker.Replica {
	t.Helper()
	// Tests that are not about the gate want every block that is there, however busy the machine is.
	o := worker.Options{Engine: open(t, name, llama.Options{}), Label: name, Gate: gate.Always}
	if change != nil {
		change(&o)
	}
	return workertest.Start(t, o, tiered.Options{Remote: remote, HotBytes: 32 << 20, ProbeTimeout: time.Second, FetchTimeout: 5 * time.Second})
}

func complete(t testing.TB, r *worker.Replica, req worker.Request) worker.Result {
	t.Helper()
	res, err := r.Complete(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if sum := res.HotTokens + res.RemoteTokens + res.ComputedTokens; sum != res.PromptTokens {
		t.Fatalf("%d tokens hot, %d remote, %d computed, but the prompt has %d", res.HotTokens, res.RemoteTokens, res.ComputedTokens, res.PromptTokens)
	}
	return res
}

func flush(t testing.TB, r *worker.Replica) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.Cache().Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

// poll asks ok until it says yes, and returns whether it did within 20 s.
func poll(ok func() bool) bool {
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

const speech = "PETRUCHIO:\nGood morrow, Kate; for that's your name, I hear.\n\nKATHARINA:\nWell have you heard, but something hard of hearing:\n" +
	"They call me Katharina that do talk of me.\n\nPETRUCHIO:\nYou lie, in faith; for you are call'd plain Kate,\nAnd bonny Kate and sometimes Kate the curst;\n"

// Never wrong: whatever part of a prompt comes from which tier, the output is that of computing everything.
func TestOutputIsIdenticalHoweverThePrefixIsServed(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	workers := []*worker.Replica{newReplica(t, v2, remote, nil), newReplica(t, v2, remote, nil)}
	long := strings.Repeat(speech, 2)
	sawHot, sawRemote := false, false
	rapid.Check(t, func(rt *rapid.T) {
		req := worker.Request{
			Prompt:      long[:rapid.IntRange(1, len(long)).Draw(rt, "length")] + rapid.SampledFrom([]string{"", "\nKATHARINA:\n", "é"}).Draw(rt, "end"),
			MaxTokens:   rapid.IntRange(0, 20).Draw(rt, "max"),
			Temperature: rapid.SampledFrom([]float64{0, 0.8}).Draw(rt, "temperature"),
			Seed:        rapid.Uint64().Draw(rt, "seed"),
			Salt:        rapid.SampledFrom([]string{"", "tenant"}).Draw(rt, "salt"),
		}
		w := workers[rapid.IntRange(0, 1).Draw(rt, "worker")]
		got := complete(t, w, req)
		plain := req
		plain.NoCache = true
		want := complete(t, w, plain)
		if !slices.Equal(got.Tokens, want.Tokens) {
			rt.Fatalf("with the cache (%d hot, %d remote, %d computed) %q, without %q", got.HotTokens, got.RemoteTokens, got.ComputedTokens, got.Text, want.Text)
		}
		if want.ComputedTokens != want.PromptTokens || got.ComputedTokens < 1 {
			rt.Fatalf("computed %d tokens with and %d without the cache, of %d", got.ComputedTokens, want.ComputedTokens, want.PromptTokens)
		}
		sawHot, sawRemote = sawHot || got.HotTokens > 0, sawRemote || got.RemoteTokens > 0
	})
	if !sawHot || !sawRemote {
		t.Errorf("the property was not put to the test: hot hits %v, remote hits %v", sawHot, sawRemote)
	}
}

func TestTheNextTurnHitsWhatTheLastOneGenerated(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	first := complete(t, r, worker.Request{Prompt: speech, MaxTokens: 40})
	second := complete(t, r, worker.Request{Prompt: speech + first.Text + "\n\nPETRUCHIO:\n", MaxTokens: 1})
	// The last generated token has no K/V yet, and a block that is not full is not kept.
	if want := (first.PromptTokens + 39) / 16 * 16; second.HotTokens < want-16 || second.HotTokens > want {
		t.Errorf("%d tokens hit, want about %d of prompt and answer", second.HotTokens, want)
	}
	if second.HotTokens <= first.PromptTokens {
		t.Errorf("%d tokens hit of a prompt of %d: nothing of what was generated", second.HotTokens, first.PromptTokens)
	}
}

func TestTenantsShareNothing(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := newReplica(t, v2, remote, nil), newReplica(t, v2, remote, nil)
	complete(t, a, worker.Request{Prompt: speech, Salt: "a"})
	flush(t, a)
	for _, c := range []struct {
		name string
		at   *worker.Replica
		salt string
		want bool
	}{
		{"same tenant, same worker", a, "a", true}, {"same tenant, other worker", b, "a", true},
		{"other tenant, same worker", a, "b", false}, {"no tenant, same worker", a, "", false},
		{"other tenant, other worker", b, "c", false},
	} {
		if got := complete(t, c.at, worker.Request{Prompt: speech, Salt: c.salt}).CachedTokens(); (got > 0) != c.want {
			t.Errorf("%s: %d cached tokens, want some: %v", c.name, got, c.want)
		}
	}
}

// Never stale: while weights are swapped to and fro under traffic, every answer is that of the weights that it names, and what was
// cached before a swap is not used after it.
func TestSwapNeverServesOldWeights(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	r := newReplica(t, v1, remote, nil)
	prompts := []string{speech, speech + "Kate", "KATHARINA:\n" + speech}
	want := map[block.Identity][][]int32{}
	for _, name := range []string{v1, v2} {
		e := newReplica(t, name, nil, nil)
		for _, p := range prompts {
			res := complete(t, e, worker.Request{Prompt: p, MaxTokens: 8, NoCache: true})
			want[res.Identity] = append(want[res.Identity], res.Tokens)
		}
	}
	if len(want) != 2 {
		t.Fatalf("%d identities of 2 checkpoints", len(want))
	}
	ctx, stop := context.WithCancel(t.Context())
	var traffic sync.WaitGroup
	for i := range 3 {
		traffic.Go(func() {
			for k := i; ctx.Err() == nil; k++ {
				res, err := r.Complete(context.WithoutCancel(ctx), worker.Request{Prompt: prompts[k%3], MaxTokens: 8})
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.Equal(res.Tokens, want[res.Identity][k%3]) {
					t.Errorf("%s: %d hot and %d remote tokens led to other output", res.Label, res.HotTokens, res.RemoteTokens)
				}
			}
		})
	}
	for k := range 6 {
		name := []string{v2, v1}[k%2]
		if err := r.SwapWeights(t.Context(), name, func(context.Context) (engine.Engine, error) { return open(t, name, llama.Options{}), nil }); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	traffic.Wait()

	// In quiet: another epoch-less worker on its own, so that only identity keeps the weights apart.
	fresh := newReplica(t, v1, memstore.New(memstore.Options{}), nil)
	complete(t, fresh, worker.Request{Prompt: speech})
	flush(t, fresh)
	if err := fresh.SwapWeights(t.Context(), v2, func(context.Context) (engine.Engine, error) { return open(t, v2, llama.Options{}), nil }); err != nil {
		t.Fatal(err)
	}
	if got := complete(t, fresh, worker.Request{Prompt: speech}); got.CachedTokens() != 0 || got.Label != v2 {
		t.Errorf("first request after the swap to %s: %d cached tokens, want 0", got.Label, got.CachedTokens())
	}
	if got := complete(t, fresh, worker.Request{Prompt: speech}); got.CachedTokens() == 0 {
		t.Error("second request after the swap has no hits")
	}
}

func TestAFailedSwapChangesNothing(t *testing.T) {
	r := newReplica(t, v1, nil, nil)
	complete(t, r, worker.Request{Prompt: speech})
	broken := errors.New("truncated")
	err := r.SwapWeights(t.Context(), v2, func(context.Context) (engine.Engine, error) { return nil, broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	err = r.SwapWeights(t.Context(), v2, func(context.Context) (engine.Engine, error) {
		return open(t, v2, llama.Options{BlockTokens: 32}), nil
	})
	if !errors.Is(err, worker.ErrShape) {
		t.Errorf("other shape: %v, want ErrShape", err)
	}
	if got := complete(t, r, worker.Request{Prompt: speech}); got.HotTokens == 0 || got.Label != v1 {
		t.Errorf("afterwards %s with %d hot tokens; want %s and hits", got.Label, got.HotTokens, v1)
	}
}

// Never blocks: a store that fails, hangs or lies costs hits, not answers.
func TestRequestsGoOnWithoutRedis(t *testing.T) {
	faulty := storetest.NewFaulty(memstore.New(memstore.Options{}))
	a, b := newReplica(t, v2, faulty, nil), newReplica(t, v2, store.WithBreaker(faulty, store.BreakerOptions{}), nil)
	complete(t, a, worker.Request{Prompt: speech})
	flush(t, a)
	want := complete(t, a, worker.Request{Prompt: speech, MaxTokens: 8, NoCache: true}).Tokens
	for i, f := range []storetest.Fault{{Err: storetest.ErrInjected}, {Corrupt: true}, {Delay: time.Hour}} {
		for _, op := range []storetest.Op{storetest.Lead, storetest.Get, storetest.Put} {
			f.Op = op
			faulty.Inject(f)
			got := complete(t, b, worker.Request{Prompt: speech, MaxTokens: 8})
			if !slices.Equal(got.Tokens, want) {
				t.Errorf("fault %d of %s changed the output", i, op)
			}
			faulty.Heal()
		}
	}
}

func TestBadRequestsSayWhatIsWrong(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	for want, req := range map[string]worker.Request{
		"empty":       {},
		"context":     {Tokens: make([]int32, 3000)},
		"max_tokens":  {Prompt: "x", MaxTokens: -1},
		"2048 tokens": {Prompt: "x", MaxTokens: 2048},
		"temperature": {Prompt: "x", Temperature: -1},
		"vocabulary":  {Tokens: []int32{1, 5000}},
		"position 0":  {Tokens: []int32{-1}},
	} {
		if _, err := r.Complete(t.Context(), req); !errors.Is(err, worker.ErrRequest) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got %v, want ErrRequest that names %s", err, want)
		}
	}
}

func TestClosedAndCancelled(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Complete(ctx, worker.Request{Prompt: speech}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := r.Complete(t.Context(), worker.Request{Prompt: speech}); !errors.Is(err, worker.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
