package warmup

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"time"
)

// take returns the next task that can be done, and waits for one; nil when there is nothing left to do.
func (r *run) take(ctx context.Context) *Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil
		}
		if err := r.draw(); err != nil {
			r.stop(err)
			return nil
		}
		if len(r.ready) > 0 {
			return heap.Remove(&r.ready, r.pick()).(*Task)
		}
		if r.drawn && r.open == 0 {
			r.wake.Broadcast()
			return nil
		}
		r.wake.Wait()
	}
}

// jitterTasks is how many of the next tasks jitter chooses from.
const jitterTasks = 32

// pick chooses a task among those that are ready: the next, or with jitter one of the next of its priority. Runs that go through one plan side by side
// would all be at the same task otherwise: who is ahead has to compute, and who finds that done catches up. mu is held.
func (r *run) pick() int {
	if r.opts.Jitter == 0 {
		return 0
	}
	i := rand.N(min(jitterTasks, len(r.ready)))
	if r.ready[i].rec.priority != r.ready[0].rec.priority {
		return 0
	}
	return i
}

// draw reads tasks while there is room for them. mu is held.
func (r *run) draw() error {
	window := windowPerLane * len(r.opts.Workers) * r.opts.Concurrency
	for !r.drawn && len(r.ready) < window/4 && r.open < window {
		t, err, ok := r.next()
		switch {
		case !ok:
			r.drawn = true
		case err != nil:
			return err
		case r.opts.Journal != nil && r.opts.Journal.Done(t.ID):
			t.ended = true
			r.count(t)
		default:
			r.open++
			if t.parent != nil && !t.parent.ended {
				t.parent.children = append(t.parent.children, t)
			} else {
				heap.Push(&r.ready, t)
			}
		}
	}
	return nil
}

// count adds a task that is done. mu is held.
func (r *run) count(t *Task) {
	r.report.DoneBlocks += int64(t.To - t.From)
	if t.Final {
		r.report.DoneItems++
		r.report.PromptTokens += int64(t.rec.blocks * r.plan.BlockTokens)
	}
}

// end closes a task, which makes ready what has waited for it: also after a failure, since others may compute what it did not.
func (r *run) end(t *Task, worker int, out Outcome, err error) {
	if err == nil && r.opts.Journal != nil {
		// A note that could not be written costs a look-up in the next run.
		_ = r.opts.Journal.Mark(context.Background(), t.ID)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if worker >= 0 {
		w := &r.report.Workers[worker]
		w.Tasks++
		w.ComputedTokens += int64(out.ComputedTokens)
		w.BytesStored += out.StoredBytes
	}
	r.report.ComputedTokens += int64(out.ComputedTokens)
	r.report.BytesStored += out.StoredBytes
	if err == nil {
		r.count(t)
	} else {
		t.failed = true
		if t.Final {
			r.report.Failed++
		}
		if r.opts.Failed != nil && t.Final {
			r.opts.Failed(&LineError{r.plan.opts.Source.Files[t.rec.file].Path, t.rec.number, err})
		}
	}
	t.ended = true
	for _, c := range t.children {
		heap.Push(&r.ready, c)
	}
	t.children = nil
	r.open--
	r.lastUp = time.Now()
	if r.opts.Progress != nil {
		r.finishReport()
		r.opts.Progress(r.report)
	}
	r.wake.Broadcast()
}

func (r *run) finishReport() {
	r.report.Seconds = time.Since(r.start).Seconds()
	r.report.SkippedTokens = max(0, r.report.PromptTokens-r.report.ComputedTokens)
	r.report.TokensPerSec = float64(r.report.ComputedTokens) / max(r.report.Seconds, 1e-9)
}

// retry gives a task back that a worker could not do, or gives it up after too many attempts.
func (r *run) retry(t *Task, worker int, err error) {
	r.mu.Lock()
	r.report.Retries++
	r.report.Workers[worker].Errors++
	t.attempts++
	if t.attempts < r.opts.Attempts {
		heap.Push(&r.ready, t)
		r.wake.Broadcast()
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.end(t, -1, Outcome{}, err)
}

// idle reports whether nothing is left to do.
func (r *run) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drawn && r.open == 0
}

// taskHeap has the task that stands first in the plan on top: deep before wide, so that few stretches are open at once.
type taskHeap []*Task

func (h taskHeap) Len() int           { return len(h) }
func (h taskHeap) Less(i, j int) bool { return h[i].ID < h[j].ID }
func (h taskHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *taskHeap) Push(x any)        { *h = append(*h, x.(*Task)) }
func (h *taskHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}
