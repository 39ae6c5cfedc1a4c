package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// reconcileLoop compares every model's record with what is remembered and with what workers have seen.
func (c *Coordinator) reconcileLoop(ctx context.Context) {
	for ctx.Err() == nil {
		c.reconcileAll(ctx)
		sleep(ctx, time.Duration(float64(c.opt.Reconcile)*(0.8+0.4*rand.Float64())))
	}
}

func (c *Coordinator) reconcileAll(ctx context.Context) {
	round, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	// Heartbeats before records: what a worker has seen is then at least as old as what is read here, and a record that lacks it
	// has really lost it.
	beats, err := c.opt.Control.Workers(round)
	var listed []string
	if err == nil {
		listed, err = c.opt.Control.Models(round)
	}
	if ctx.Err() != nil {
		return
	}
	c.problem("", err)
	if err != nil {
		c.metrics.errors.Inc()
		return
	}
	c.mu.Lock()
	c.beats = beats
	names := listed
	for name := range c.known { // the list may be lost together with the records
		names = append(names, name)
	}
	c.mu.Unlock()
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		err := c.reconcile(round, name, beats)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, ErrConflict): // somebody was faster: the next round sees what they wrote
			c.metrics.conflicts.Inc()
			err = nil
		case errors.Is(err, ErrDeposed): // or the lease was lost with everything else, and can be had again
			c.campaign(ctx)
			if err = c.reconcile(round, name, beats); errors.Is(err, ErrConflict) || errors.Is(err, ErrDeposed) {
				err = nil
			}
		}
		c.problem(name, err)
		if err != nil {
			c.metrics.errors.Inc()
		}
	}
	c.mu.Lock()
	c.lastOK = c.opt.Now()
	known := maps.Clone(c.known)
	c.mu.Unlock()
	if c.state == nil {
		return
	}
	err = c.state.keep(known)
	c.problem("", err)
	if err != nil {
		c.metrics.errors.Inc()
	}
}

// reconcile puts one model's record right, if it is not. That is the leader's task; the others watch, and remember. What one of them alone
// remembers, because the leader has started after Redis lost it, that one writes again when the leader has had its time.
func (c *Coordinator) reconcile(ctx context.Context, model string, beats []Heartbeat) error {
	known := c.remembered(model)
	prev, found, err := c.load(ctx, model, known)
	if err != nil {
		return err
	}
	if found == nil && known == nil {
		if len(prev.raw) > 0 {
			return fmt.Errorf("%w: it cannot be read and this coordinator remembers none", ErrRecord)
		}
		return nil // listed and not there: it comes back with the first registration
	}
	now := c.opt.Now()
	_, leads := c.leading()
	if !leads {
		beats = nil // what workers have seen is the leader's to judge
	}
	next, reason, err := Reconcile(known, found, beats, Stamp{Now: now, Act: c.opt.NewAct()})
	if err != nil {
		return err
	}
	if !leads && c.patience(model, reason, now) {
		return nil
	}
	switch reason {
	case reasonNone:
		c.remember(*found)
		return nil
	case reasonSeen:
		// Each of these costs the model its cache. A worker that reports nonsense must not keep it cold.
		c.mu.Lock()
		last, again := c.reseen[model]
		if wait := again && now.Sub(last) >= 0 && now.Sub(last) < 2*c.opt.Lease; wait {
			c.mu.Unlock()
			return fmt.Errorf("%w: workers have seen a later one than generation %d; rewritten only just now", ErrRecord, next.Gen-1)
		}
		c.reseen[model] = now
		c.mu.Unlock()
	}
	_, err = c.write(ctx, prev, next, writing{reason: reason, leader: leads})
	return err
}

// patience reports whether a loss that only this coordinator, which does not lead, has noticed is to be left to the leader for now.
func (c *Coordinator) patience(model, reason string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reason == reasonNone {
		delete(c.losses, model)
		return false
	}
	since, again := c.losses[model]
	if !again || now.Before(since) {
		c.losses[model] = now
		return true
	}
	return now.Sub(since) < 2*c.opt.Leadership // long enough for a takeover
}

// problem notes why something failed, or that it does not, and logs the change.
func (c *Coordinator) problem(model string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.problems[model]
	if err == nil {
		delete(c.problems, model)
		if before != "" {
			c.opt.Logger.Info("reconciliation works again", "model", model)
		}
		return
	}
	c.problems[model] = err.Error()
	if before == "" {
		c.opt.Logger.Warn("reconciliation fails", "model", model, "err", err)
	}
}

// Ready reports whether Redis was reached within the last few rounds, and why not.
func (c *Coordinator) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.problems[""]; p != "" {
		return errors.New(p)
	}
	if c.lastOK.IsZero() {
		return errors.New("coordinator: no round of reconciliation has ended yet")
	}
	return nil
}
