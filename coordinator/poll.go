package coordinator

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/internal/pause"
)

const (
	// eagerPolls is how often a poll that did not find the generation a hint has promised is repeated early: the record may not
	// be visible yet. A hint that nobody keeps costs these polls and nothing more.
	eagerPolls = 5
	eagerPause = 20 * time.Millisecond
	// minGap keeps a flood of hints from becoming a flood of polls.
	minGap = 10 * time.Millisecond
	// retryPause is the longest pause after a poll or a subscription that failed.
	retryPause = time.Second
	// listenTimeout is how long a silent subscription is trusted before it is pinged, and then given up.
	listenTimeout = 5 * time.Second
)

// run polls and beats until ctx ends. It is the only writer of the view.
func (w *Watch) run(ctx context.Context) {
	eager := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.beat:
			w.sendBeat(ctx)
			continue
		case <-w.kick:
			if gap := w.opt.Now().Sub(w.lastPoll); gap >= 0 && gap < minGap {
				sleep(ctx, minGap-gap)
			}
		case <-timer.C:
		}
		// Read before the poll: a hint that arrives during it has kicked again.
		hint := w.hinted.Load()
		ok := w.poll(ctx)
		view := w.View()
		pause := time.Duration(float64(w.opt.Poll) * (0.8 + 0.4*rand.Float64()))
		switch {
		case !ok:
			pause = min(pause, retryPause)
			eager = 0
		case hint <= view.Gen:
			eager = 0
		case eager < eagerPolls:
			// The hint overtook the record. It stays pending: reading the old generation proves nothing about the new one.
			pause = min(pause, eagerPause<<eager)
			eager++
		default:
			w.hinted.CompareAndSwap(hint, 0)
			eager = 0
		}
		turned := view.State != w.lastState
		if turned {
			w.opt.Logger.Info("lease changed", "model", w.opt.Model, "state", view.State, "gen", view.Gen, "problem", view.Problem)
			w.lastState = view.State
		}
		if since := w.opt.Now().Sub(w.lastBeat); since >= w.opt.Beat || since < 0 || w.lastBeat.IsZero() || turned ||
			view.Gen != w.acked || w.snap.Load().refused != w.reported {
			w.sendBeat(ctx) // a new generation is acknowledged, and one that is refused reported, at once
		}
		timer.Reset(pause)
	}
}

// poll reads the record once and reports whether it was adopted or confirmed.
func (w *Watch) poll(ctx context.Context) bool {
	// The lease counts from before the read: what was revoked after this moment may be missing in the reply, however long that takes.
	from := w.opt.Now()
	w.lastPoll = from
	prev := w.snap.Load()
	pollCtx, cancel := context.WithTimeout(ctx, w.opt.Poll)
	found, err := w.opt.Control.Load(pollCtx, w.opt.Model)
	cancel()
	if mutation.Is(mutation.LeaseFromReply) {
		from = w.opt.Now()
	}
	var next *snapshot
	if err == nil {
		next, err = prev.adopt(found, from, w.opt.Lease)
	}
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		if prev.view.Problem == "" && !(prev.view.Gen == 0 && errors.Is(err, ErrNoModel)) {
			w.opt.Logger.Warn("lease not renewed", "model", w.opt.Model, "gen", prev.view.Gen, "err", err)
		}
		same := *prev
		same.refused = found.Gen // 0 if none was read
		same.view.Problem = err.Error()
		w.snap.Store(&same)
		return false
	}
	w.snap.Store(next)
	if next.view.Gen != prev.view.Gen {
		w.opt.Logger.Info("record adopted", "model", w.opt.Model, "gen", next.view.Gen, "before", prev.view.Gen)
		if mutation.Is(mutation.AckBeforeAct) {
			w.sendBeat(ctx)
		}
		w.opt.OnChange(w.View())
		close(prev.changed)
	}
	return true
}

// sendBeat reports the current view, which OnChange has been told of.
func (w *Watch) sendBeat(ctx context.Context) {
	view, s := w.View(), w.snap.Load() // no other goroutine stores one in between
	h := Heartbeat{
		Incarnation: w.opt.Incarnation, Model: w.opt.Model, Info: w.opt.Info(),
		Gen: view.Gen, Sum: view.Sum, Epoch: s.topEpoch, Refused: s.refused, State: view.State, Problem: view.Problem,
	}
	h.Problem = h.Problem[:min(len(h.Problem), 200)]
	stats := make(map[string]float64, len(h.Stats))
	for name, x := range h.Stats { // ours now, and without what JSON cannot say
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			stats[name] = x
		}
	}
	h.Stats = stats
	ctx, cancel := context.WithTimeout(ctx, w.opt.Poll)
	defer cancel()
	w.lastBeat = w.opt.Now()
	if err := w.opt.Control.Beat(ctx, h, w.lastBeat); err != nil {
		if errors.Is(err, ErrInvalid) {
			w.opt.Logger.Warn("heartbeat refused", "model", w.opt.Model, "err", err)
		}
		return // the next poll beats again: acked is not up to date
	}
	w.acked, w.reported = view.Gen, s.refused
}

// listen turns hints into polls until ctx ends. Every subscription, first or renewed, polls: hints published before it are lost.
func (w *Watch) listen(ctx context.Context) {
	for ctx.Err() == nil {
		sub := w.opt.Control.rdb.Subscribe(ctx)
		// A blocked read does not notice the end of ctx: closing the connection ends it.
		stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
		if err := sub.Subscribe(ctx, hintChannel); err == nil {
			w.receive(ctx, sub)
		}
		stop()
		_ = sub.Close()
		pause := min(w.opt.Poll, retryPause)
		sleep(ctx, pause/2+rand.N(pause/2))
	}
}

// receive reads one subscription until it breaks or stays silent even when pinged.
func (w *Watch) receive(ctx context.Context, sub *redis.PubSub) {
	pinged := false
	for ctx.Err() == nil {
		msg, err := sub.ReceiveTimeout(ctx, listenTimeout)
		if err != nil {
			if t, ok := errors.AsType[interface {
				error
				Timeout() bool
			}](err); !ok || !t.Timeout() || pinged || sub.Ping(ctx) != nil {
				return
			}
			pinged = true
			continue
		}
		pinged = false
		switch msg := msg.(type) {
		case *redis.Subscription:
			if mutation.Is(mutation.NoPollOnSubscribe) {
				continue
			}
			w.Poll()
		case *redis.Message:
			model, gen, ok := parseHint(msg.Payload)
			if !ok || model != w.opt.Model || gen <= w.snap.Load().view.Gen {
				continue
			}
			for {
				old := w.hinted.Load()
				if old >= gen || w.hinted.CompareAndSwap(old, gen) {
					break
				}
			}
			w.Poll()
		}
	}
}

// sleep is for loops that look at ctx themselves.
func sleep(ctx context.Context, d time.Duration) { _ = pause.For(ctx, d) }
