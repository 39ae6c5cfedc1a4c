package warmup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/memstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
)

// turns is a chat template.
const turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"

// serveWorker runs a worker with the shipped model and its HTTP API.
func serveWorker(t *testing.T, remote store.Store) *Remote {
	t.Helper()
	b, err := fs.ReadFile(models.FS, models.Default)
	if err != nil {
		t.Fatal(err)
	}
	e, err := llama.OpenReader(bytes.NewReader(b), int64(len(b)), models.Default, llama.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := tiered.New(tiered.Options{Layout: e.Layout(), Remote: remote, HotBytes: 8 << 20, ProbeTimeout: 20 * time.Second, FetchTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r, err := worker.NewReplica(worker.Options{Engine: e, Cache: c, Gate: gate.Always})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(worker.Handler(r, worker.HandlerOptions{Model: "shakespeare", ChatTemplate: turns}))
	t.Cleanup(func() {
		s.Close()
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
		c.Close(context.Background())
	})
	w, err := NewRemote(s.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func planFor(t *testing.T, manifest string, workers ...*Remote) *Plan {
	t.Helper()
	p, err := NewPlan(t.Context(), PlanOptions{Source: TextSource("m", manifest), Encoder: &RemoteEncoder{Workers: workers}, BlockTokens: 16, Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// Conversations are warmed as the workers' chat template writes them: a chat request that begins with one hits, in a run together with other prompts.
func TestConversationsAreWarmed(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := serveWorker(t, remote), serveWorker(t, remote)
	said := strings.Repeat("What light through yonder window breaks? ", 6)
	chat := []map[string]string{{"role": "system", "content": strings.Repeat("Thou art a player of the Globe. ", 8)}, {"role": "user", "content": said}}
	line, err := json.Marshal(map[string]any{"messages": chat})
	if err != nil {
		t.Fatal(err)
	}
	p := planFor(t, fmt.Sprintf("%s\n{\"prompt\":%q}\n", line, said), a, b)
	r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}})
	if err != nil || r.DoneItems != 2 || r.Failed != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	body, err := json.Marshal(map[string]any{"model": "shakespeare", "messages": chat, "max_tokens": 1, "temperature": 0})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(b.Name()+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Usage struct {
			PromptTokens int `json:"prompt_tokens"`
			Details      struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v: %s", err, text)
	}
	if u := answer.Usage; u.PromptTokens < 32 || u.Details.Cached != (u.PromptTokens-1)/16*16 {
		t.Errorf("%d of %d tokens of the conversation were cached", u.Details.Cached, u.PromptTokens)
	}
}

// Two runs over one tier at the same time get in each other's way only in that both may compute what neither has stored yet: at most everything
// twice. Afterwards everything is there, as it should be.
func TestTwoRunsAtTheSameTime(t *testing.T) {
	remote := memstore.New(memstore.Options{})
	a, b := serveWorker(t, remote), serveWorker(t, remote)
	var manifest strings.Builder
	for i := range 24 {
		fmt.Fprintf(&manifest, "{\"prompt\":%q}\n", strings.Repeat(fmt.Sprintf("Preface %d of the play. ", i%3), 8)+strings.Repeat(fmt.Sprintf("Scene %d. ", i), 12))
	}
	present := func() int64 {
		n, err := planFor(t, manifest.String(), a).Present(t.Context(), []Looker{a, b})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := present(); n != 0 {
		t.Errorf("%d blocks are stored at the beginning", n)
	}
	plans, reports := []*Plan{planFor(t, manifest.String(), a), planFor(t, manifest.String(), b)}, make([]Report, 2)
	var runs sync.WaitGroup
	for i, p := range plans {
		runs.Go(func() {
			var err error
			if reports[i], err = p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}, Jitter: time.Duration(i) * time.Millisecond}); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	unique := plans[0].Stats.UniqueBlocks * 16
	computed := reports[0].ComputedTokens + reports[1].ComputedTokens
	if computed < unique || computed > 2*unique || reports[0].DoneItems != 24 || reports[1].DoneItems != 24 {
		t.Errorf("computed %d tokens of %d: %+v", computed, unique, reports)
	}
	if n := present(); n != plans[0].Stats.UniqueBlocks {
		t.Errorf("%d of %d blocks are stored", n, plans[0].Stats.UniqueBlocks)
	}
	again, err := planFor(t, manifest.String(), a).Run(t.Context(), RunOptions{Workers: []Worker{a, b}})
	if err != nil || again.ComputedTokens != 0 || again.DoneItems != 24 {
		t.Errorf("a third run: %+v, %v", again, err)
	}
	t.Logf("%d tokens computed for %d", computed, unique)
}
