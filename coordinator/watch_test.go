package coordinator

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// bubble is one model with a coordinator that runs no loops and a watch that does, in virtual time.
type bubble struct {
	*testing.T
	srv   *server
	ctl   *Control
	coord *Coordinator
	watch *Watch
}

// inBubble registers v1 (active) and v2 and waits for the first lease.
func inBubble(t *testing.T, edit func(*WatchOptions), fn func(*bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{T: t, srv: newServer(t)}
		b.ctl = b.srv.control(t)
		var err error
		if b.coord, err = New(Options{Control: b.ctl}); err != nil {
			t.Fatal(err)
		}
		b.register(1, "v1")
		b.register(2, "v2")
		opt := WatchOptions{Control: b.srv.control(t), Model: "m", Incarnation: "w1"}
		if edit != nil {
			edit(&opt)
		}
		if b.watch, err = NewWatch(opt); err != nil {
			t.Fatal(err)
		}
		if v := b.watch.View(); v.State != Unsynced || len(v.Versions()) != 0 {
			t.Errorf("before Start: %+v", v)
		}
		b.watch.Start()
		defer func() { // a goroutine that is left over fails the bubble
			b.srv.cut(false)
			_ = b.watch.Close()
		}()
		time.Sleep(50 * time.Millisecond)
		b.want(2, Leased)
		fn(b)
	})
}

func (b *bubble) register(n byte, label string) {
	b.Helper()
	if _, err := b.coord.Register(b.Context(), "m", identity(n, 1), label); err != nil {
		b.Fatal(err)
	}
}

// reconcile makes the coordinator lead, and go round once.
func (b *bubble) reconcile() {
	b.coord.campaign(b.Context())
	b.coord.reconcileAll(b.Context())
}

func (b *bubble) want(gen uint64, state LeaseState) {
	b.Helper()
	if v := b.watch.View(); v.Gen != gen || v.State != state {
		b.Fatalf("view is generation %d, %s (%s); want %d, %s", v.Gen, v.State, v.Problem, gen, state)
	}
}

func (b *bubble) granted(n byte) bool {
	_, ok := b.watch.Grant(identity(n, 1).Variant())
	return ok
}

// raw writes the record behind everybody's back, without a hint.
func (b *bubble) raw(value string) {
	if err := b.srv.Set(recordPrefix+"m", value); err != nil {
		b.Fatal(err)
	}
}

func (b *bubble) read() string {
	s, _ := b.srv.Get(recordPrefix + "m")
	return s
}

func (b *bubble) hint(gen uint64) {
	b.Helper()
	if err := b.ctl.Hint(b.Context(), "m", gen); err != nil {
		b.Fatal(err)
	}
}

func (b *bubble) beat() Heartbeat {
	b.Helper()
	hs, err := b.ctl.Workers(b.Context())
	if err != nil || len(hs) != 1 {
		b.Fatalf("heartbeats: %+v, %v; want one", hs, err)
	}
	return hs[0]
}

func TestHintBeatsThePoll(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		if _, err := b.coord.Activate(b.Context(), "m", "v2", false); err != nil {
			b.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // far below the poll interval
		b.want(3, Leased)
		if b.granted(1) || !b.granted(2) {
			b.Errorf("v1 granted: %v, v2 granted: %v; want false, true", b.granted(1), b.granted(2))
		}
		if h := b.beat(); h.Gen != 3 || h.Sum == "" || h.State != Leased {
			b.Errorf("the acknowledgement is %+v", h)
		}
	})
}

func TestRaceMessageLost(t *testing.T) { // race 11
	inBubble(t, nil, func(b *bubble) {
		next := must(b.T)(stateOf(b).Revoke("v1", Stamp{Now: time.Now(), Act: Act{9}}))
		b.raw(string(stored(b.T, next).raw))
		time.Sleep(DefaultPoll*12/10 + 20*time.Millisecond)
		b.want(3, Leased)
		if b.granted(1) {
			b.Error("still granted after a poll interval")
		}
	})
}

func stateOf(b *bubble) Record {
	r, err := b.ctl.Load(b.Context(), "m")
	if err != nil {
		b.Fatal(err)
	}
	return r.Record
}

func TestRaceMessageDuplicatedAndReordered(t *testing.T) { // races 12, 13
	var changes atomic.Int64
	inBubble(t, func(o *WatchOptions) { o.OnChange = func(View) { changes.Add(1) } }, func(b *bubble) {
		if _, err := b.coord.Purge(b.Context(), "m", AllVersions); err != nil {
			b.Fatal(err)
		}
		for _, gen := range []uint64{3, 3, 2, 1, 3, 2} {
			b.hint(gen)
		}
		time.Sleep(50 * time.Millisecond)
		b.want(3, Leased)
		if n := changes.Load(); n != 2 { // the first record and the purge
			b.Errorf("%d changes, want 2", n)
		}
	})
}

func TestRaceHintBeforeTheRecordIsVisible(t *testing.T) { // race 14
	inBubble(t, nil, func(b *bubble) {
		next := stored(b.T, must(b.T)(stateOf(b).Revoke("v1", Stamp{Now: time.Now(), Act: Act{9}})))
		b.hint(3)
		time.Sleep(60 * time.Millisecond) // polls have read generation 2 by now
		b.want(2, Leased)
		if b.watch.hinted.Load() != 3 {
			b.Error("reading the old generation has cleared the pending one")
		}
		b.raw(string(next.raw))
		time.Sleep(400 * time.Millisecond) // below the poll interval
		b.want(3, Leased)
	})
}

func TestForgedHintIsForgotten(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.hint(MaxNumber)
		for _, junk := range []string{"", "m", "m x", "n 9", "m -1", "m 99999999999999999999", strings.Repeat("m", 1<<16)} {
			if err := b.ctl.rdb.Publish(b.Context(), hintChannel, junk).Err(); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		b.want(2, Leased)
		if h := b.watch.hinted.Load(); h != 0 {
			b.Errorf("generation %d is still awaited", h)
		}
	})
}

func TestRaceGenerationGoesBack(t *testing.T) { // races 18, 21
	inBubble(t, nil, func(b *bubble) {
		before := b.read()
		if _, err := b.coord.Revoke(b.Context(), "m", "v1"); err != nil {
			b.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		b.want(3, Leased)
		b.raw(before) // a failover: v1 is active again
		time.Sleep(2 * time.Second)
		b.want(3, Leased)
		if b.granted(1) {
			b.Error("the revoked version is granted again")
		}
		if h := b.beat(); h.Refused != 2 || h.Gen != 3 || !strings.Contains(h.Problem, "backwards") {
			b.Errorf("the heartbeat says %+v", h)
		}
		time.Sleep(DefaultLease)
		b.want(3, Expired)
		if _, ok := b.watch.View().Usable(identity(1, 1).Variant(), Local); ok {
			b.Error("local mode uses a revoked version")
		}
		b.reconcile() // it remembers generation 3
		time.Sleep(50 * time.Millisecond)
		b.want(4, Leased)
		if b.granted(1) {
			b.Error("the coordinator brought a revoked version back")
		}
	})
}

func TestRaceGenerationReusedWithOtherContent(t *testing.T) { // race 19
	inBubble(t, nil, func(b *bubble) {
		base := stateOf(b)
		one := stored(b.T, must(b.T)(base.Revoke("v1", Stamp{Now: time.Now(), Act: Act{9}})))
		other := stored(b.T, must(b.T)(base.Activate("v2", true, Stamp{Now: time.Now(), Act: Act{8}})))
		b.raw(string(one.raw))
		time.Sleep(1300 * time.Millisecond)
		b.want(3, Leased)
		b.raw(string(other.raw)) // also generation 3, and v1 is active in it
		time.Sleep(2 * DefaultLease)
		b.want(3, Expired)
		if b.granted(1) {
			b.Error("adopted the other generation 3")
		}
		b.reconcile()
		time.Sleep(50 * time.Millisecond)
		b.want(4, Leased)
		if g, _ := b.watch.Grant(identity(1, 1).Variant()); g.Act == base.Variants[identity(1, 1).Variant()].Act {
			b.Error("the revoked activation is granted again")
		}
	})
}

func TestRaceFlushIsReasserted(t *testing.T) { // race 20
	inBubble(t, nil, func(b *bubble) {
		grant, _ := b.watch.Grant(identity(1, 1).Variant())
		b.srv.FlushAll()
		time.Sleep(1500 * time.Millisecond)
		b.want(2, Leased) // its lease runs on, unrenewed
		if b.watch.View().Problem == "" {
			b.Error("the view does not say that the record is missing")
		}
		b.reconcile()
		time.Sleep(50 * time.Millisecond)
		b.want(3, Leased)
		if again, _ := b.watch.Grant(identity(1, 1).Variant()); again != grant {
			b.Errorf("the grant changed from %v to %v", grant, again)
		}
	})
}

func TestDamagedRecordIsNotUsed(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		for _, bad := range []string{"{", strings.Repeat("x", 1<<20), strings.Replace(b.read(), `"gen":2`, `"gen":2,"gen2":3`, 1)} {
			b.raw(bad)
			time.Sleep(1300 * time.Millisecond)
			if v := b.watch.View(); v.Gen != 2 || !strings.Contains(v.Problem, ErrRecord.Error()) {
				b.Fatalf("with %.20q: generation %d, %q", bad, v.Gen, v.Problem)
			}
		}
		time.Sleep(DefaultLease)
		b.want(2, Expired)
		b.reconcile()
		time.Sleep(50 * time.Millisecond)
		b.want(3, Leased)
	})
}

func TestLeaseExpiresInAPartition(t *testing.T) { // race 15 at this layer
	inBubble(t, nil, func(b *bubble) {
		variant := identity(1, 1).Variant()
		b.srv.cut(true)
		time.Sleep(DefaultLease - 1500*time.Millisecond)
		b.want(2, Leased)
		time.Sleep(1500 * time.Millisecond)
		b.want(2, Expired)
		if _, ok := b.watch.View().Usable(variant, Strict); ok {
			b.Error("strict uses the cache without a lease")
		}
		if _, ok := b.watch.View().Usable(variant, Local); !ok {
			b.Error("local does not go on without a lease")
		}
		b.srv.cut(false)
		time.Sleep(1500 * time.Millisecond)
		b.want(2, Leased)
	})
}

// TestReconnectionPolls: hints that were published while the subscription was broken are lost, so that its renewal must poll.
func TestReconnectionPolls(t *testing.T) {
	inBubble(t, func(o *WatchOptions) { o.Poll, o.Lease = time.Hour, 3*time.Hour }, func(b *bubble) {
		b.srv.cut(true)
		time.Sleep(10 * time.Second)
		next := stored(b.T, must(b.T)(stateFrom(b.T, b.read()).Revoke("v1", Stamp{Now: time.Now(), Act: Act{9}})))
		b.raw(string(next.raw))
		b.srv.cut(false)
		time.Sleep(3 * time.Second) // far from the next poll
		b.want(3, Leased)
	})
}

func stateFrom(t *testing.T, raw string) Record {
	t.Helper()
	r, err := DecodeRecord("m", []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// slowReads delays the replies to reads: the server has answered, and the answer is long under way.
type slowReads struct{ by time.Duration }

func (h slowReads) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h slowReads) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (h slowReads) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "getrange" {
			time.Sleep(h.by)
		}
		return err
	}
}

// TestLeaseCountsFromBeforeTheRead: what was revoked while the reply was under way is not in it, so that the lease counts from before.
func TestLeaseCountsFromBeforeTheRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		must2(t)(newCoordinator(t, Options{Control: srv.control(t)}).Register(t.Context(), "m", identity(1, 1), "v1"))
		ctl := srv.control(t)
		ctl.rdb.AddHook(slowReads{3 * time.Second})
		w, err := NewWatch(WatchOptions{Control: ctl, Model: "m", Poll: 20 * time.Second, Lease: 40 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		w.Start()
		defer w.Close()
		time.Sleep(4 * time.Second)
		if v := w.View(); v.State != Leased || v.LeaseUntil.Sub(begun) != 40*time.Second {
			t.Errorf("%s until %v after the read began, want leased until 40s", v.State, v.LeaseUntil.Sub(begun))
		}
	})
}

// TestSuspendedClock: the monotonic clock of a suspended machine stands still while the wall clock goes on, and NTP steps the wall clock while
// the monotonic one goes on. Whichever says that more time has passed counts.
func TestSuspendedClock(t *testing.T) { // races 16, 17
	now := time.Now()
	s := &snapshot{from: now.Round(0)} // without its monotonic reading, only the wall clock is compared
	if got := s.stateAt(now.Add(time.Hour).Round(0), DefaultLease); got != Expired {
		t.Errorf("woken an hour later: %s", got)
	}
	s = &snapshot{from: now}
	if got := s.stateAt(now.Add(time.Second), DefaultLease); got != Leased {
		t.Errorf("a second later: %s", got)
	}
	if got := s.stateAt(now.Add(-time.Hour), DefaultLease); got != Leased {
		t.Errorf("wall clock an hour back: %s; the next poll renews it anyway", got)
	}
}

func TestAcknowledgedOnlyAfterOnChange(t *testing.T) {
	var release chan struct{}
	var once sync.Once
	inBubble(t, func(o *WatchOptions) {
		release = make(chan struct{}) // in the bubble
		o.OnChange = func(v View) {
			if v.Gen == 3 {
				<-release // still dropping entries
			}
		}
		o.Info = func() Info { return Info{Address: "here", Loadable: []string{"v1", "v2"}} }
	}, func(b *bubble) {
		defer once.Do(func() { close(release) })
		if _, err := b.coord.Revoke(b.Context(), "m", "v1"); err != nil {
			b.Fatal(err)
		}
		time.Sleep(time.Second)
		st, err := b.coord.Status(b.Context(), "m")
		if err != nil || st.Invalidation.Complete || len(st.Invalidation.Lagging) != 1 || st.Invalidation.Lagging[0] != "w1" {
			b.Errorf("while entries are dropped: %+v, %v", st.Invalidation, err)
		}
		once.Do(func() { close(release) })
		time.Sleep(50 * time.Millisecond)
		st, err = b.coord.Status(b.Context(), "m")
		if err != nil || !st.Invalidation.Complete || st.Invalidation.Acked != 1 || !st.Workers[0].Acknowledged || st.Workers[0].Address != "here" {
			b.Errorf("afterwards: %+v, %v", st, err)
		}
	})
}

func TestChangedAndAwait(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		changed := b.watch.Changed()
		go func() {
			time.Sleep(time.Second)
			_, _ = b.coord.Activate(context.WithoutCancel(b.Context()), "m", "v2", true)
		}()
		v, err := b.watch.Await(b.Context(), 3)
		if err != nil || v.Gen != 3 {
			b.Fatalf("Await: generation %d, %v", v.Gen, err)
		}
		select {
		case <-changed:
		default:
			b.Error("Changed was not closed")
		}
		if act := v.Active(); len(act) != 2 || act[0].Label != "v2" {
			b.Errorf("active: %+v, want v2 before v1", act)
		}
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		if _, err := b.watch.Await(ctx, 99); !errors.Is(err, context.DeadlineExceeded) {
			b.Errorf("Await of a generation that never comes: %v", err)
		}
	})
}

// TestHeartbeatExpires: a worker that is cut off is off the list once its heartbeat expires, and on it again after the partition.
func TestHeartbeatExpires(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		b.srv.cut(true)
		time.Sleep(HeartbeatTTL + time.Second)
		b.want(2, Expired)
		b.srv.cut(false)
		_ = b.ctl.Ping(b.Context()) // its connection was cut as well
		hs, err := b.ctl.Workers(b.Context())
		if err != nil || len(hs) != 0 {
			b.Fatalf("cut off: %+v, %v; want none", hs, err)
		}
		time.Sleep(3 * time.Second)
		if h := b.beat(); h.Incarnation != "w1" || h.State != Leased {
			b.Errorf("after the partition: %+v", h)
		}
	})
}

func TestCloseLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t)
		ctl := srv.control(t)
		w, err := NewWatch(WatchOptions{Control: ctl, Model: "m"})
		if err != nil {
			t.Fatal(err)
		}
		w.Start()
		time.Sleep(3 * time.Second)
		if hs, err := ctl.Workers(t.Context()); err != nil || len(hs) != 1 || hs[0].State != Unsynced {
			t.Errorf("without a record: %+v, %v; want one unsynced worker", hs, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if hs, err := ctl.Workers(t.Context()); err != nil || len(hs) != 0 {
			t.Errorf("after Close: %+v, %v", hs, err)
		}
	})
}

func TestWatchOptions(t *testing.T) {
	_, err := NewWatch(WatchOptions{Model: "a//b", Poll: time.Second, Lease: time.Second, Beat: time.Minute})
	for _, want := range []string{"Control", "model name", "Lease", "Beat"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
}

func BenchmarkView(b *testing.B) {
	w, err := NewWatch(WatchOptions{Control: NewControl(nil), Model: "m"})
	if err != nil {
		b.Fatal(err)
	}
	a := &acts{}
	r := NewRecord("m")
	for i := range 8 {
		r, _ = r.Register(identity(byte(i), 1), "", true, a.at(start))
	}
	raw, _ := r.Encode()
	s, err := w.snap.Load().adopt(Stored{Record: r, raw: raw}, time.Now(), time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	w.snap.Store(s)
	v := identity(0, 1).Variant()
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := w.View().Usable(v, Strict); !ok {
			b.Fatal("not granted")
		}
	}
}
