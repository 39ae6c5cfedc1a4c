package warmup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvtier/kvtier/internal/pause"
)

// tier is what workers share in these tests: the prefixes that are stored, and how often each was computed. The real one, with an engine and
// Redis, is in integration.
type tier struct {
	mu       sync.Mutex
	stored   map[string]bool
	computed map[string]int
}

func newTier() *tier { return &tier{stored: map[string]bool{}, computed: map[string]int{}} }

// hand is a worker that takes a millisecond per block. broken, if not nil, may fail a call before or after it was done.
type hand struct {
	name   string
	tier   *tier
	bt     int
	broken func(call int) (before, after error)
	down   func() error

	mu    sync.Mutex
	calls int
}

func (h *hand) Name() string { return h.name }

func (h *hand) Ping(context.Context) error {
	if h.down != nil {
		return h.down()
	}
	return nil
}

func (h *hand) Warm(ctx context.Context, req Request) (Outcome, error) {
	h.mu.Lock()
	h.calls++
	call := h.calls
	h.mu.Unlock()
	var before, after error
	if h.broken != nil {
		before, after = h.broken(call)
	}
	if before != nil {
		return Outcome{}, before
	}
	out := Outcome{}
	for n := h.bt; n <= len(req.Tokens); n += h.bt {
		key := fmt.Sprint(req.Salt, req.Tokens[:n])
		h.tier.mu.Lock()
		there := h.tier.stored[key]
		h.tier.mu.Unlock()
		if there {
			continue
		}
		if err := pause.For(ctx, time.Millisecond); err != nil {
			return out, err
		}
		h.tier.mu.Lock()
		h.tier.stored[key] = true
		h.tier.computed[key]++
		h.tier.mu.Unlock()
		out.ComputedTokens += h.bt
		out.StoredBytes += 100
	}
	return out, after
}

// once reports what was computed more than once.
func (x *tier) once(t *testing.T, most int) {
	t.Helper()
	twice := 0
	for _, n := range x.computed {
		twice += n - 1
	}
	if twice > most {
		t.Errorf("%d blocks were computed again, at most %d may", twice, most)
	}
}

// prefaced is a manifest of n prompts behind a few prefaces.
func prefaced(t testing.TB, n int) Source {
	var lines []string
	for i := range n {
		lines = append(lines, strings.Repeat(string(rune('a'+i%5)), 40)+strings.Repeat(fmt.Sprintf("%03d", i), 10))
	}
	return sourceOf(t, "p.txt", strings.Join(lines, "\n"))
}

func TestWorkersShareTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 200), 4, 0)
		x := newTier()
		one := &hand{name: "1", tier: newTier(), bt: 4}
		alone, err := p.Run(t.Context(), RunOptions{Workers: []Worker{one}})
		if err != nil {
			t.Fatal(err)
		}
		a, b := &hand{name: "a", tier: x, bt: 4}, &hand{name: "b", tier: x, bt: 4}
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}})
		if err != nil {
			t.Fatal(err)
		}
		if r.DoneItems != 200 || r.Failed != 0 || r.ComputedTokens != 4*p.Stats.UniqueBlocks || r.BytesStored != 100*p.Stats.UniqueBlocks || r.DoneBlocks != r.UniqueBlocks {
			t.Errorf("report %+v of %+v", r, p.Stats)
		}
		x.once(t, 0)
		if r.Seconds > alone.Seconds*0.6 { // of simulated time
			t.Errorf("two workers took %.3f s, one %.3f s", r.Seconds, alone.Seconds)
		}
		again, err := p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}})
		if err != nil || again.ComputedTokens != 0 || again.DoneItems != 200 || again.SkippedTokens != again.PromptTokens {
			t.Errorf("second run: %+v, %v", again, err)
		}
	})
}

// A worker that dies keeps nobody from finishing: what it had is done by another, and by itself when it is back.
func TestWorkersMayDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 200), 4, 0)
		x := newTier()
		dead := time.Now().Add(time.Hour)
		a := &hand{name: "a", tier: x, bt: 4}
		b := &hand{name: "b", tier: x, bt: 4, broken: func(call int) (error, error) {
			if call == 10 {
				dead = time.Now()
				return nil, fmt.Errorf("%w: connection reset", ErrWorker) // done, and nobody was told
			}
			if time.Since(dead) >= 0 && time.Since(dead) < 50*time.Millisecond {
				return fmt.Errorf("%w: refused", ErrWorker), nil
			}
			return nil, nil
		}, down: func() error {
			if time.Since(dead) < 50*time.Millisecond {
				return errors.New("refused")
			}
			return nil
		}}
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}})
		if err != nil || r.DoneItems != 200 || r.Failed != 0 || r.Retries == 0 {
			t.Errorf("%v, report %+v", err, r)
		}
		x.once(t, 0) // the answer was lost, the blocks were not
		if r.Workers[1].Tasks < 20 {
			t.Errorf("the worker that came back did %d tasks", r.Workers[1].Tasks)
		}
	})
}

func TestLeaseOfAWorkerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 20), 4, 0)
		x := newTier()
		hung := &hung{hand{name: "hung", tier: x, bt: 4}}
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{hung, &hand{name: "a", tier: x, bt: 4}}, Lease: time.Second, Attempts: 50})
		if err != nil || r.DoneItems != 20 || r.Workers[0].Tasks != 0 {
			t.Errorf("%v, report %+v", err, r)
		}
	})
}

// hung takes a task and never answers.
type hung struct{ hand }

func (h *hung) Warm(ctx context.Context, _ Request) (Outcome, error) {
	<-ctx.Done()
	return Outcome{}, ctx.Err()
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 20), 4, 0)
		gone := fmt.Errorf("%w: refused", ErrWorker)
		h := &hand{name: "a", broken: func(int) (error, error) { return gone, nil }, down: func() error { return gone }}
		began := time.Now()
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{h}, GiveUp: time.Minute})
		if !errors.Is(err, ErrNoWorkers) || time.Since(began) > 2*time.Minute || r.DoneItems != 0 {
			t.Errorf("%v after %v, %+v", err, time.Since(began), r)
		}
	})
}

// What a worker refuses for good counts as failed, and the prompts that build on it are done all the same.
func TestAPromptThatFailsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 20), 4, 0)
		x := newTier()
		h := &hand{name: "a", tier: x, bt: 4, broken: func(call int) (error, error) {
			if call == 1 || call == 3 {
				return errors.New("bad request"), nil
			}
			return nil, nil
		}}
		var named []string
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{h}, Failed: func(err error) { named = append(named, err.Error()) }})
		if err != nil || r.Failed != 1 || r.DoneItems != 19 || len(named) != 1 || !strings.Contains(named[0], "line ") {
			t.Errorf("%v, report %+v, named %q", err, r, named)
		}
		x.once(t, 0)
	})
}

func TestARevokedVariantStopsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 200), 4, 0)
		x := newTier()
		revoked := func(call int) (error, error) {
			if call > 5 {
				return fmt.Errorf("%w: revoked", ErrStop), nil
			}
			return nil, nil
		}
		a, b := &hand{name: "a", tier: x, bt: 4, broken: revoked}, &hand{name: "b", tier: x, bt: 4, broken: revoked}
		if _, err := p.Run(t.Context(), RunOptions{Workers: []Worker{a, b}}); !errors.Is(err, ErrStop) || a.calls+b.calls > 14 {
			t.Errorf("%v after %d calls", err, a.calls+b.calls)
		}
	})
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := planOf(t, prefaced(t, 50), 4, 0)
		total := 4 * float64(p.Stats.UniqueBlocks)
		r, err := p.Run(t.Context(), RunOptions{Workers: []Worker{&hand{name: "a", tier: newTier(), bt: 4}}, TokensPerSecond: total / 10})
		if err != nil || r.Seconds < 8 || r.Seconds > 11 {
			t.Errorf("a tenth of the tokens per second: %.1f s, %v", r.Seconds, err)
		}
		r, err = p.Run(t.Context(), RunOptions{Workers: []Worker{&hand{name: "a", tier: newTier(), bt: 4}}, BytesPerSecond: r.bytesPer(20)})
		if err != nil || r.Seconds < 17 || r.Seconds > 21 {
			t.Errorf("a twentieth of the bytes per second: %.1f s, %v", r.Seconds, err)
		}
		r, err = p.Run(t.Context(), RunOptions{Workers: []Worker{&hand{name: "a", tier: newTier(), bt: 4}}, MaxBytes: 2000})
		if !errors.Is(err, ErrBudget) || r.BytesStored < 2000 || r.BytesStored > 4000 {
			t.Errorf("budget of 2000 bytes: %d stored, %v", r.BytesStored, err)
		}
	})
}

func (r Report) bytesPer(seconds float64) float64 { return float64(r.BytesStored) / seconds }

// A run that is killed at any moment and started again, with the journal, ends with everything done, and computes nothing twice.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := prefaced(t, 200)
		x := newTier()
		path := filepath.Join(t.TempDir(), "journal")
		rng := rand.New(rand.NewPCG(1, 2))
		runs, asked := 0, 0
		for {
			p := planOf(t, s, 4, 0)
			run := Run{Plan: fmt.Sprint(p.Digest), Variant: "v", Epoch: 3}
			j, err := OpenJournal(path, run, false)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+rng.IntN(80))*time.Millisecond)
			a, b := &hand{name: "a", tier: x, bt: 4}, &hand{name: "b", tier: x, bt: 4}
			r, err := p.Run(ctx, RunOptions{Workers: []Worker{a, b}, Journal: j})
			cancel()
			if cerr := j.Close(); cerr != nil {
				t.Fatal(cerr)
			}
			runs++
			asked += a.calls + b.calls
			if err == nil {
				if r.DoneItems != 200 || r.Failed != 0 {
					t.Errorf("report %+v", r)
				}
				break
			}
			if runs > 100 {
				t.Fatal("it does not get on")
			}
		}
		x.once(t, 0)
		if tasks := 200 + 5; runs < 3 || asked > tasks+2*runs {
			t.Errorf("%d runs asked %d times for %d tasks: at most one per worker and run may be asked again", runs, asked, tasks)
		}
		if _, err := OpenJournal(path, Run{Plan: "other"}, false); !errors.Is(err, ErrJournal) {
			t.Errorf("another run's journal: %v", err)
		}
	})
}

func TestJournalSurvivesATornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	run := Run{Plan: "p", Variant: "v"}
	open := func() *FileJournal {
		t.Helper()
		j, err := OpenJournal(path, run, false)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := open()
	for _, n := range []int{1, 70_000, 3} {
		if err := j.Mark(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := j.f.WriteString("12"); err != nil { // cut off where 123 should stand
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open()
	if !j.Done(1) || !j.Done(70_000) || !j.Done(3) || j.Done(12) || j.Done(2) || j.Len() != 3 {
		t.Errorf("replayed %d tasks", j.Len())
	}
	if err := j.Mark(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j = open(); !j.Done(5) || j.Len() != 4 {
		t.Error("what was noted behind the torn line is lost")
	}
	_ = j.Close()
}
