package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
)

const (
	reclaimKey = "kvt1:{ctl}:reclaim" // ReclaimProgress of the leader's pass, expires
	reclaimTTL = time.Minute
	// reclaimReport is how often progress is published.
	reclaimReport = time.Second
)

// ReclaimProgress is how far a pass over the entries of dead epochs has come.
type ReclaimProgress struct {
	Owner   string `json:"owner"`   // coordinator that makes it
	Epochs  int    `json:"epochs"`  // dead epochs that it is for, of all models
	Scanned int64  `json:"scanned"` // names looked at, live ones too
	Deleted int64  `json:"deleted"`
	Bytes   int64  `json:"bytes"` // size of the deleted values
	Begun   int64  `json:"begun"` // unix ms
	At      int64  `json:"at"`    // unix ms of this report
	Done    bool   `json:"done"`
	Error   string `json:"error,omitempty"` // why it was broken off; it is resumed
}

// task is a dead epoch whose next pass is due.
type task struct {
	model string
	dead  Dead
	pass  int
}

func (t task) prefix() string { return block.EpochPrefix(t.dead.Variant, t.dead.Epoch) }

// pass is a walk over all names for all tasks that were due when it began. It is kept until it has succeeded, so that one that was broken
// off goes on where it was; another coordinator that takes over begins anew.
type pass struct {
	tasks []task
	at    store.Sweep
	begun time.Time
	told  time.Time // last report
}

// reclaimLoop deletes the entries of dead epochs, twice each.
func (c *Coordinator) reclaimLoop(ctx context.Context) {
	failures := 0
	var p *pass
	for ctx.Err() == nil {
		err := c.reclaim(ctx, &p)
		if ctx.Err() != nil {
			return
		}
		pause := c.opt.Reconcile
		if err != nil {
			if failures == 0 {
				c.opt.Logger.Warn("reclaim fails", "err", err)
			}
			failures++
			c.metrics.reclaimErrors.Inc()
			pause = min(c.opt.Reconcile<<min(failures, 5), 30*time.Second)
		} else {
			failures = 0
		}
		sleep(ctx, time.Duration(float64(pause)*(0.8+0.4*rand.Float64())))
	}
}

// reclaim goes on with the pass that *p is, or begins one if there is something to do. *p is nil again when it is over.
func (c *Coordinator) reclaim(ctx context.Context, p **pass) error {
	if _, leads := c.leading(); !leads {
		*p = nil
		return nil
	}
	if *p == nil {
		tasks := c.due()
		if len(tasks) == 0 {
			return nil
		}
		*p = &pass{tasks: tasks, begun: c.opt.Now()}
	}
	err := c.sweep(ctx, *p)
	if errors.Is(err, ErrDeposed) {
		*p = nil
		return nil // somebody else does it
	}
	if err == nil {
		err = c.noteSwept(ctx, (*p).tasks)
		*p = nil // what could not be noted is due again
	}
	return err
}

// due lists every pass that is due, by what the last round has read or written.
func (c *Coordinator) due() (tasks []task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.opt.Now()
	for _, name := range slices.Sorted(maps.Keys(c.known)) {
		for _, d := range c.known[name].Dead {
			if n := d.due(now, c.opt.Lease, name, c.beats); n != 0 {
				tasks = append(tasks, task{name, d, n})
			}
		}
	}
	return tasks
}

// sweep makes one pass for all tasks, in one walk over the names if the store can.
func (c *Coordinator) sweep(ctx context.Context, p *pass) error {
	var prefixes []string
	for _, t := range p.tasks {
		prefixes = append(prefixes, t.prefix())
	}
	before := p.at.Deleted
	sweeper, ok := c.opt.Store.(store.Sweeper)
	if !ok {
		for _, prefix := range prefixes {
			n, err := c.opt.Store.DeletePrefix(ctx, prefix)
			p.at.Deleted += int64(n)
			c.metrics.reclaimed.Add(float64(n))
			c.report(ctx, p, p.at, false, err)
			if err != nil {
				return err
			}
		}
		c.report(ctx, p, p.at, true, nil)
		return nil
	}
	at, err := sweeper.Sweep(ctx, prefixes, p.at, func(at store.Sweep) error {
		if _, leads := c.leading(); !leads {
			return ErrDeposed
		}
		if now := c.opt.Now(); now.Sub(p.told) >= reclaimReport {
			p.told = now
			c.report(ctx, p, at, false, nil)
		}
		return nil
	})
	p.at = at
	c.metrics.reclaimed.Add(float64(at.Deleted - before))
	c.report(ctx, p, at, err == nil, err)
	return err
}

// noteSwept writes into the records what was done, one write per model.
func (c *Coordinator) noteSwept(ctx context.Context, tasks []task) error {
	byModel := map[string][]Dead{}
	for _, t := range tasks {
		byModel[t.model] = append(byModel[t.model], t.dead)
	}
	var errs []error
	for _, model := range slices.Sorted(maps.Keys(byModel)) {
		opCtx, cancel := context.WithTimeout(ctx, opTimeout)
		_, _, err := c.update(opCtx, proposal{model: model, leader: true, fn: func(r Record, s Stamp) (Record, error) {
			return r.SweepAll(byModel[model], s)
		}})
		cancel()
		if err != nil && !errors.Is(err, ErrDeposed) {
			errs = append(errs, err)
			continue
		}
		c.opt.Logger.Info("epochs reclaimed", "model", model, "epochs", len(byModel[model]))
	}
	return errors.Join(errs...)
}

// report publishes progress, for the status that any coordinator answers with. Losing it costs nothing.
func (c *Coordinator) report(ctx context.Context, p *pass, at store.Sweep, done bool, err error) {
	r := ReclaimProgress{
		Owner: c.opt.Owner, Epochs: len(p.tasks), Scanned: at.Scanned, Deleted: at.Deleted, Bytes: at.Bytes,
		Begun: millis(p.begun), At: millis(c.opt.Now()), Done: done,
	}
	if err != nil {
		r.Error = err.Error()
		r.Error = r.Error[:min(len(r.Error), 200)]
	}
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_ = c.opt.Control.rdb.Set(ctx, reclaimKey, b, reclaimTTL).Err()
}

// reclaiming reads the progress of the leader's pass; nil if there was none lately.
func (c *Control) reclaiming(ctx context.Context) (*ReclaimProgress, error) {
	b, err := c.rdb.GetRange(ctx, reclaimKey, 0, maxChangeBytes).Bytes()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("coordinator: read progress of reclaim: %w", err)
	}
	var r ReclaimProgress
	if len(b) == 0 || json.Unmarshal(b, &r) != nil {
		return nil, nil
	}
	return &r, nil
}
