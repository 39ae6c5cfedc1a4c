package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Warmer carries out warm-ups: what a coordinator has jobs for and does not know how to do.
type Warmer interface {
	// Check reports what is wrong with a manifest that nothing can be warmed from: the line and why. It asks no worker.
	Check(spec JobSpec, manifest string) error
	// Warm warms what the work's manifest says, and returns when all of it is done, or ctx ends. It calls report now and then.
	Warm(ctx context.Context, w WarmWork) error
	// Release takes pins off: everything in manifest may be evicted again.
	Release(ctx context.Context, workers []string, v block.Variant, manifest string) error
}

// WarmWork is a job for a Warmer.
type WarmWork struct {
	Spec     JobSpec
	Variant  block.Variant
	Manifest string
	Workers  []string // addresses of the API of those that serve the variant

	// Begin is called with the name of the plan, before any task; it returns which tasks of it are done.
	Begin  func(plan string) (done func(task int) bool, err error)
	Mark   func(task int) error
	Report func(report json.RawMessage)
}

const (
	warmupEvery = 500 * time.Millisecond // how often the leader looks for jobs and for what is wanted of the one that runs
	reportEvery = time.Second
)

// errSteered ends a run because something else is wanted.
var errSteered = errors.New("coordinator: warm-up paused or cancelled")

// warmupLoop carries out jobs, one after the other, while this coordinator leads.
func (c *Coordinator) warmupLoop(ctx context.Context) {
	failing := false // a Redis that is away is news once, not twice a second
	for ctx.Err() == nil {
		if l, leads := c.leading(); leads {
			err := c.warmupRound(ctx, l.fence())
			switch {
			case ctx.Err() != nil || errors.Is(err, ErrDeposed):
			case err != nil && !failing:
				c.opt.Logger.Warn("warm-ups are held up", "err", err)
				failing = true
			case err == nil && failing:
				c.opt.Logger.Info("warm-ups go on")
				failing = false
			}
		}
		sleep(ctx, warmupEvery)
	}
}

// warmupRound does what the jobs that wait ask for, and then the oldest that shall run.
func (c *Coordinator) warmupRound(ctx context.Context, fence string) error {
	list, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	jobs, err := c.opt.Control.jobs(list)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		switch {
		case j.State.Ended():
		case j.Want == JobCancelled:
			if err := c.endJob(ctx, j.ID, fence, JobCancelled, nil); err != nil {
				return err
			}
		case j.Want == JobPaused:
			if j.State != JobPaused {
				if _, err := c.opt.Control.changeJob(list, j.ID, fence, func(j *Job) error { j.State = JobPaused; return nil }); err != nil {
					return err
				}
			}
		default:
			return c.carryOut(ctx, j.Job, fence)
		}
	}
	return nil
}

func (c *Coordinator) endJob(ctx context.Context, id, fence string, state JobState, why error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	_, err := c.opt.Control.changeJob(ctx, id, fence, func(j *Job) error {
		j.State, j.Ended, j.Error = state, millis(c.opt.Now()), ""
		if why != nil {
			j.Error = fmt.Sprintf("%.1000s", why.Error())
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.opt.Logger.Info("warm-up ended", "id", id, "state", state, "err", why)
	return c.opt.Control.dropWork(ctx, id)
}

// carryOut runs one job until it ends, something else is wanted, or this coordinator leads no more.
func (c *Coordinator) carryOut(ctx context.Context, j Job, fence string) error {
	first, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	manifest, err := c.opt.Control.manifest(first, j.ID)
	if err != nil {
		return c.endJob(ctx, j.ID, fence, JobFailed, err)
	}
	workers, err := c.workersOf(first, j.Spec.Model, j.Variant)
	if err != nil {
		return err
	}
	if len(workers) == 0 {
		return c.orphaned(ctx, j, fence)
	}
	if j, err = c.opt.Control.changeJob(first, j.ID, fence, func(j *Job) error {
		j.State, j.Via, j.Error = JobRunning, c.opt.Owner, ""
		return nil
	}); err != nil {
		return err
	}
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watching sync.WaitGroup
	watching.Go(func() { c.watchJob(run, j.ID, stop) })
	var latest reportBox
	watching.Go(func() { c.publish(run, j.ID, fence, &latest, stop) })
	err = c.opt.Warmer.Warm(run, WarmWork{
		Spec: j.Spec, Variant: j.Variant, Manifest: manifest, Workers: workers,
		Begin: func(plan string) (func(int) bool, error) { return c.beginPlan(run, j, plan, fence) },
		Mark: func(task int) error {
			op, cancel := context.WithTimeout(context.WithoutCancel(run), opTimeout)
			defer cancel()
			return c.opt.Control.markTask(op, j.ID, task)
		},
		Report: latest.put,
	})
	cause := context.Cause(run)
	stop(nil)
	watching.Wait()
	switch {
	case errors.Is(cause, errSteered), errors.Is(cause, ErrDeposed):
		return nil // the next round, or the next leader, does what is wanted
	case ctx.Err() != nil:
		return nil // resumed by whoever leads next
	}
	last, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if r := latest.get(); r != nil {
		if _, err := c.opt.Control.changeJob(last, j.ID, fence, func(j *Job) error { j.Report = r; return nil }); err != nil {
			return err
		}
	}
	if err != nil {
		return c.endJob(ctx, j.ID, fence, JobFailed, err)
	}
	return c.endJob(ctx, j.ID, fence, JobDone, nil)
}

// orphaned decides about a job whose variant no worker serves: it waits, unless the variant was revoked.
func (c *Coordinator) orphaned(ctx context.Context, j Job, fence string) error {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	found, err := c.opt.Control.Load(op, j.Spec.Model)
	if err != nil {
		return err
	}
	if e, ok := found.Variants[j.Variant]; !ok || !e.State.Live() {
		return c.endJob(ctx, j.ID, fence, JobFailed, fmt.Errorf("variant %v is not active any more", j.Variant))
	}
	_, err = c.opt.Control.changeJob(op, j.ID, fence, func(j *Job) error {
		j.State, j.Error = JobQueued, "no living worker serves the variant: waiting"
		return nil
	})
	return err
}

// beginPlan tells which tasks are done, if the job was begun with the same plan.
func (c *Coordinator) beginPlan(ctx context.Context, j Job, plan, fence string) (func(int) bool, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if j.Plan != plan {
		if err := c.opt.Control.clearTasks(ctx, j.ID); err != nil {
			return nil, err
		}
		if _, err := c.opt.Control.changeJob(ctx, j.ID, fence, func(j *Job) error { j.Plan = plan; return nil }); err != nil {
			return nil, err
		}
	}
	done, err := c.opt.Control.doneTasks(ctx, j.ID)
	if err != nil {
		return nil, err
	}
	return func(task int) bool { return task>>3 < len(done) && done[task>>3]>>(7-task&7)&1 == 1 }, nil
}

// watchJob ends a run when something else is wanted, or another coordinator leads.
func (c *Coordinator) watchJob(ctx context.Context, id string, stop context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if _, leads := c.leading(); !leads {
			stop(ErrDeposed)
			return
		}
		op, cancel := context.WithTimeout(ctx, opTimeout)
		j, err := c.opt.Control.job(op, id)
		cancel()
		if err == nil && j.Want != JobRunning || errors.Is(err, ErrNoJob) {
			stop(errSteered)
			return
		}
		sleep(ctx, warmupEvery)
	}
}

// publish writes the latest report into the job now and then.
func (c *Coordinator) publish(ctx context.Context, id, fence string, latest *reportBox, stop context.CancelCauseFunc) {
	for ctx.Err() == nil {
		sleep(ctx, reportEvery)
		r := latest.get()
		if r == nil || ctx.Err() != nil {
			continue
		}
		op, cancel := context.WithTimeout(ctx, opTimeout)
		_, err := c.opt.Control.changeJob(op, id, fence, func(j *Job) error { j.Report = r; return nil })
		cancel()
		if errors.Is(err, ErrDeposed) {
			stop(ErrDeposed)
			return
		}
	}
}

// reportBox holds the latest report.
type reportBox struct {
	mu sync.Mutex
	r  json.RawMessage
}

func (b *reportBox) put(r json.RawMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = r
}

func (b *reportBox) get() json.RawMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.r
}

// workersOf lists the addresses of the living workers that serve a variant.
func (c *Coordinator) workersOf(ctx context.Context, model string, v block.Variant) ([]string, error) {
	beats, err := c.opt.Control.Workers(ctx)
	if err != nil {
		return nil, err
	}
	var at []string
	for _, h := range beats {
		if _, _, err := net.SplitHostPort(h.Address); err == nil && h.Model == model && h.Variant == v && h.State == Leased {
			at = append(at, h.Address)
		}
	}
	return at, nil
}
