package llamacpp

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// lookAgain is how long a server that is not trusted is left alone.
const lookAgain = 10 * time.Second

// attestFor is how long an answer of the server is enough to know that it is still there: no process ends and another one loads a model and answers
// within that time. The server closes most connections after each answer, so that without this every request would ask more than once.
const attestFor = 20 * time.Millisecond

// attest makes sure that the process behind the address is the one that the pool describes, and that it computes what the identity says. It costs
// nothing as long as no connection was opened or closed since the last time: a process has its connections. After that the server is asked for
// the marker that every process draws for itself; if that has changed, everything known of slots is forgotten, and the new process has to compute
// the canary, in slot s, before it is trusted. An error means that the server does not answer. Whether it is trusted is in usable, and
// whether s is still what it was, in s.reign.
func (e *Engine) attest(ctx context.Context, s *slot) error {
	if e.settled() {
		return nil
	}
	if err := e.attesting.Acquire(ctx, 1); err != nil {
		return err
	}
	defer e.attesting.Release(1)
	changes := e.client.changes.Load()
	if e.settled() || changes == e.attested.Load() && time.Since(e.asked) < lookAgain {
		return nil
	}
	at := time.Since(e.started)
	now, err := e.client.props(ctx)
	if err != nil {
		return err
	}
	// Without a marker of its own every new connection may be to another process.
	same := now.Marker == e.server.Marker && now.Marker != "" && now.Marker != fixedMarker && now.Build == e.server.Build
	if !same {
		e.opts.Logger.Info("llama-server is another process", "build", now.Build, "model", now.ModelPath)
	}
	e.server.Marker, e.server.Build = now.Marker, now.Build
	switch {
	case same && e.usable():
	case e.cached:
		e.pool.forget(s)
		e.judge(ctx, s, now)
	case !same:
		e.pool.forget(s)
		e.foreign.Store(e.otherModel(now) != nil)
	}
	e.attested.Store(changes)
	e.attestedAt.Store(int64(at))
	return nil
}

// settled reports whether there is nothing to find out.
func (e *Engine) settled() bool {
	if e.cached && !e.usable() {
		return false
	}
	return e.client.changes.Load() == e.attested.Load() || time.Since(e.started)-time.Duration(e.attestedAt.Load()) < attestFor
}

// otherModel says if a server has visibly loaded something else than the model file as it was read.
func (e *Engine) otherModel(now props) error {
	if got, want := filepath.Base(now.ModelPath), filepath.Base(e.file.path); now.ModelPath != "" && got != want {
		return fmt.Errorf("it was restarted with the model %s, this worker serves %s", got, want)
	}
	return e.file.unchanged()
}

// judge decides whether a server still is what the identity was made of.
func (e *Engine) judge(ctx context.Context, s *slot, now props) {
	e.asked = time.Now()
	err := e.compare(ctx, s, now)
	if ctx.Err() != nil {
		e.disable("it was restarted and not yet looked at")
		return
	}
	if err != nil {
		e.disable(err.Error())
		return
	}
	e.foreign.Store(false)
	if e.off.Swap(nil) != nil {
		e.opts.Logger.Info("llama-server is what it was: caching again")
	}
}

func (e *Engine) compare(ctx context.Context, s *slot, now props) error {
	e.foreign.Store(true) // until shown otherwise
	if err := e.otherModel(now); err != nil {
		return err
	}
	if now.Slots != int(e.pool.size) || now.Defaults.Context != e.context {
		return fmt.Errorf("it was restarted with %d slots of %d tokens, before it had %d of %d: restart the worker", now.Slots, now.Defaults.Context, e.pool.size, e.context)
	}
	if err := e.noAdapters(ctx); err != nil {
		return err
	}
	shape, sum, err := e.canary(ctx, s.id)
	if err == nil && sum != e.canarySum {
		shape, sum, err = e.settle(ctx, s.id)
	}
	if err != nil {
		return err
	}
	if shape != e.shape || sum != e.canarySum {
		return fmt.Errorf("it was restarted as build %s and does not compute what it did: other weights, version or flags; restart the worker", now.Build)
	}
	return nil
}
