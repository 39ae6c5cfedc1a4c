package coordinator

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestLeadership goes through what a holder may believe, moment by moment.
func TestLeadership(t *testing.T) {
	const ttl = 10 * time.Second
	at := func(d time.Duration) time.Time { return start.Add(d) }
	l := leadership{owner: "a"}
	if l.leads(start, ttl) {
		t.Fatal("leads before it was ever asked")
	}
	l = l.heard(holder{7, "b"}, at(0))
	if l.leads(at(0), ttl) || l.other != "b" || l.floor != 7 {
		t.Fatalf("after somebody else's lease: %+v", l)
	}
	l = l.heard(holder{8, "a"}, at(time.Second))
	if !l.leads(at(time.Second), ttl) || !l.leads(at(ttl), ttl) {
		t.Error("does not lead within the lease")
	}
	if l.leads(at(time.Second+ttl), ttl) {
		t.Error("leads although the time since the request was sent is the whole lease")
	}
	if l.fence() != "8 a" {
		t.Errorf("fence is %q", l.fence())
	}
	l = l.heard(holder{8, "a"}, at(5*time.Second))
	if !l.leads(at(14*time.Second), ttl) {
		t.Error("a renewal did not extend the lease")
	}
	if l = l.heard(holder{9, "c"}, at(6*time.Second)); l.leads(at(6*time.Second), ttl) {
		t.Error("leads although another one holds the lease")
	}
	for _, bad := range []string{"", "8", "8 ", "0 a", "x a", "8 a b", "9007199254740993 a", "8 " + strings.Repeat("a", 65)} {
		if h, err := parseHolder(bad); err == nil {
			t.Errorf("%q was read as %v", bad, h)
		}
	}
}

// paused is a client hook that holds back scripts while it is closed, as a process stopped between looking and writing is held back.
type paused struct {
	mu   sync.Mutex
	gate chan struct{} // nil lets everything through
	held chan struct{} // gets a token for every script held back
}

func (p *paused) pause() (resume func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.gate = gate
	return func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(gate)
	}
}

func (p *paused) DialHook(next redis.DialHook) redis.DialHook { return next }

func (p *paused) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (p *paused) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if strings.HasPrefix(cmd.Name(), "eval") {
			p.mu.Lock()
			gate := p.gate
			p.mu.Unlock()
			if gate != nil {
				select {
				case p.held <- struct{}{}:
				default:
				}
				<-gate
				ctx = context.WithoutCancel(ctx) // a stopped process does not notice time-outs either
			}
		}
		return next(ctx, cmd)
	}
}

// duo is two coordinators on one Redis, the first of which leads.
type duo struct {
	*testing.T
	ctl    *Control
	a, b   *Coordinator
	hookA  *paused
	lease  time.Duration
	exact  bool // time is synctest's: how long something takes can be judged
	mu     sync.Mutex
	clockA func() time.Time // of the first one
}

func runDuo(t *testing.T, control func(*testing.T) *Control, lease time.Duration, fn func(*duo)) {
	t.Helper()
	d := &duo{T: t, ctl: control(t), hookA: &paused{held: make(chan struct{}, 1)}, lease: lease}
	ctlA := control(t)
	ctlA.rdb.AddHook(d.hookA)
	d.clockA = time.Now
	d.a = newCoordinator(t, Options{Control: ctlA, Owner: "a", Leadership: lease, Reconcile: lease / 20, Now: func() time.Time {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.clockA()
	}})
	d.b = newCoordinator(t, Options{Control: control(t), Owner: "b", Leadership: lease, Reconcile: lease / 20})
	must2(t)(d.a.Register(t.Context(), "m", identity(1, 1), "v1"))
	d.a.Start()
	defer d.a.Close()
	eventually(t, "the first one leads", func() bool { _, ok := d.a.leading(); return ok })
	d.b.Start()
	defer d.b.Close()
	eventually(t, "the second one remembers the record", func() bool { return d.b.remembered("m") != nil })
	if _, ok := d.b.leading(); ok {
		t.Fatal("both lead")
	}
	fn(d)
}

// wantLeader waits until b leads, with a later term, and checks that a does not.
func (d *duo) wantLeader(after uint64) {
	d.Helper()
	eventually(d.T, "the other one takes over", func() bool { l, ok := d.b.leading(); return ok && l.term > after })
}

func takeoverTests(t *testing.T, run func(t *testing.T, fn func(*duo))) {
	t.Run("killed", func(t *testing.T) {
		run(t, func(d *duo) {
			term := d.a.leadership().term
			_ = d.a.opt.Control.rdb.Close() // nothing is said any more, not even goodbye
			begun := time.Now()
			d.wantLeader(term)
			if took := time.Since(begun); d.exact && took > 2*d.lease {
				d.Errorf("takeover after %v with a lease of %v", took, d.lease)
			}
			// The new one does a leader's work.
			if err := d.ctl.rdb.FlushAll(d.Context()).Err(); err != nil {
				d.Fatal(err)
			}
			eventually(d.T, "the record is written again", func() bool { s, err := d.ctl.Load(d.Context(), "m"); return err == nil && s.Gen == 2 })
		})
	})
	t.Run("goodbye", func(t *testing.T) {
		run(t, func(d *duo) {
			term := d.a.leadership().term
			_ = d.a.Close()
			begun := time.Now()
			d.wantLeader(term)
			if took := time.Since(begun); d.exact && took > d.lease/2 {
				d.Errorf("takeover after %v although the leader had resigned; lease is %v", took, d.lease)
			}
		})
	})
	// The leader is stopped after it has looked at its lease and before its write arrives; the other one takes over and writes; the write
	// then arrives.
	t.Run("paused", func(t *testing.T) {
		run(t, func(d *duo) {
			term := d.a.leadership().term
			resume := d.hookA.pause()
			if err := d.ctl.rdb.Del(d.Context(), recordPrefix+"m").Err(); err != nil { // something for a leader to do
				d.Fatal(err)
			}
			<-d.hookA.held
			d.wantLeader(term)
			var by uint64
			eventually(d.T, "the new leader writes", func() bool {
				s, err := d.ctl.Load(d.Context(), "m")
				by = s.Term
				return err == nil && s.Term > term
			})
			before, err := d.ctl.Load(d.Context(), "m")
			if err != nil {
				d.Fatal(err)
			}
			resume()
			time.Sleep(d.lease / 2)
			after, err := d.ctl.Load(d.Context(), "m")
			if err != nil || string(after.raw) != string(before.raw) {
				d.Errorf("the old leader's write went through: generation %d term %d, was %d term %d, %v", after.Gen, after.Term, before.Gen, by, err)
			}
			if l, ok := d.a.leading(); ok {
				d.Errorf("the old leader still leads with %+v", l)
			}
			// It answers requests all the same.
			if res, err := d.a.Purge(d.Context(), "m", AllVersions); err != nil || res.Gen != after.Gen+1 {
				d.Errorf("purge by one that does not lead: %+v, %v", res, err)
			}
			if s, err := d.ctl.Load(d.Context(), "m"); err != nil || s.Term < by {
				d.Errorf("the term went back to %d from %d, %v", s.Term, by, err)
			}
		})
	})
	// Two leaders: the first one's clock stands still, so that it believes in its lease for ever.
	t.Run("two leaders", func(t *testing.T) {
		run(t, func(d *duo) {
			l := d.a.leadership()
			frozen := l.sent
			d.mu.Lock()
			d.clockA = func() time.Time { return frozen }
			d.mu.Unlock()
			d.takeLease("b", l.term+1)
			d.wantLeader(l.term)
			d.a.mu.Lock()
			d.a.lead, d.a.led = l, true // whatever it has noticed meanwhile
			d.a.mu.Unlock()
			_, err := d.a.write(d.Context(), *d.a.remembered("m"), must(d)(d.a.remembered("m").Purge(AllVersions, Stamp{Now: time.Now(), Act: Act{9}})), writing{leader: true})
			if !errors.Is(err, ErrDeposed) {
				d.Errorf("a leader's write under a lost lease: %v", err)
			}
			if s, err := d.ctl.Load(d.Context(), "m"); err != nil || s.Gen != 1 {
				d.Errorf("generation %d, %v", s.Gen, err)
			}
		})
	})
}

// takeLease puts a lease into Redis as if time had passed there.
func (d *duo) takeLease(owner string, term uint64) {
	d.Helper()
	if err := d.ctl.rdb.Set(d.Context(), leaseKey, holder{term, owner}.String(), d.lease).Err(); err != nil {
		d.Fatal(err)
	}
}

func TestTakeover(t *testing.T) {
	takeoverTests(t, func(t *testing.T, fn func(*duo)) {
		synctest.Test(t, func(t *testing.T) {
			srv := newServer(t)
			runDuo(t, srv.control, DefaultLeadership, func(d *duo) { d.exact = true; fn(d) })
		})
	})
}

// TestALeaderOfALowerTermStepsDown: the lease was lost with everything else and given out anew with a lower term; the record knows better.
func TestALeaderOfALowerTermStepsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		c := newCoordinator(t, Options{Control: srv.control(t)})
		ctx := t.Context()
		r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, Stamp{Now: time.Now(), Act: Act{1}}))
		r.Term = 40
		if _, err := c.opt.Control.Swap(ctx, Stored{}, r); err != nil {
			t.Fatal(err)
		}
		c.campaign(ctx)
		if l, ok := c.leading(); !ok || l.term != 1 {
			t.Fatalf("%+v", l)
		}
		if _, _, err := c.update(ctx, proposal{model: "m", leader: true, fn: func(r Record, s Stamp) (Record, error) { return r.Purge(AllVersions, s) }}); !errors.Is(err, ErrDeposed) {
			t.Errorf("a leader of term 1 wrote a record of term 40: %v", err)
		}
		if _, ok := c.leading(); ok {
			t.Error("it still leads")
		}
		c.campaign(ctx)
		if l, ok := c.leading(); !ok || l.term != 41 {
			t.Errorf("after another campaign: %+v", l)
		}
	})
}

// TestHostileLease: whatever stands under the key, somebody leads in the end.
func TestHostileLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		for _, tt := range []struct {
			value string
			ttl   time.Duration
		}{
			{"garbage", time.Second}, {"7 somebody", 0}, {"7 somebody", 24 * time.Hour}, {strings.Repeat("x", 1<<20), 0},
			{"99999999999999999999 x", time.Second}, {"-1 x", time.Second},
		} {
			if err := srv.Set(leaseKey, tt.value); err != nil {
				t.Fatal(err)
			}
			srv.SetTTL(leaseKey, tt.ttl)
			_ = srv.Set(termKey, tt.value)
			c := newCoordinator(t, Options{Control: srv.control(t)})
			c.campaign(t.Context())
			if l, ok := c.leading(); !ok || l.term > MaxNumber/2 {
				t.Errorf("%.20q: %+v", tt.value, l)
			}
			srv.FlushAll()
		}
	})
}
