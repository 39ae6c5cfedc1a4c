package warmup

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/kvtier/kvtier/internal/pause"
)

// Errors of a run.
var (
	// ErrWorker means that a worker could not do a task for a reason of its own, so that another should.
	ErrWorker = errors.New("warmup: worker unavailable")
	// ErrStop means that nobody should go on: the weights were revoked or changed.
	ErrStop = errors.New("warmup: stopped")
	// ErrBudget means that the budget of stored bytes is used up.
	ErrBudget = errors.New("warmup: budget of bytes used up")
	// ErrNoWorkers means that no worker has answered for a long time.
	ErrNoWorkers = errors.New("warmup: no worker answers")
	// ErrChanged means that the manifest is not what was planned any more.
	ErrChanged = errors.New("warmup: the manifest has changed since it was planned")
)

// Request is what a worker is asked to warm: the blocks of Tokens, all of them full.
type Request struct {
	Tokens []int32
	Salt   string
	Pin    bool
}

// Outcome is what a worker did.
type Outcome struct {
	ComputedTokens int
	StoredBytes    int64
}

// Worker warms. Warm returns when everything is stored; its errors wrap ErrWorker or ErrStop, others are the task's own fault. Both
// methods stop at the end of ctx and are safe for concurrent use.
type Worker interface {
	Name() string
	Warm(ctx context.Context, req Request) (Outcome, error)
	// Ping is nil while the worker can take tasks.
	Ping(ctx context.Context) error
}

// RunOptions configure Plan.Run. Workers are required.
type RunOptions struct {
	Workers     []Worker
	Concurrency int           // tasks that one worker has at once; default 1
	Lease       time.Duration // how long a worker may take for a task before another gets it; default 2 min
	Attempts    int           // of a task, before it counts as failed; default 5
	GiveUp      time.Duration // how long to wait while no worker answers; default 2 min

	TokensPerSecond float64       // bound on computed tokens; 0 for none
	BytesPerSecond  float64       // bound on stored bytes; 0 for none
	MaxBytes        int64         // stored bytes after which the run ends with ErrBudget; 0 for none
	Jitter          time.Duration // a random wait up to this before each task, and tasks in random order, so that jobs started together part

	// Journal, if set, knows what an earlier run has done.
	Journal Journal
	// Progress is called after each task, one at a time; nil for nobody.
	Progress func(Report)
	// Failed is called with each prompt that could not be warmed, one at a time; nil for nobody.
	Failed func(error)
	// Gate, if set, is asked before each task and may hold it up: a paused job waits there.
	Gate func(ctx context.Context) error
}

func (o RunOptions) withDefaults() RunOptions {
	o.Concurrency = cmp.Or(o.Concurrency, 1)
	o.Lease = cmp.Or(o.Lease, 2*time.Minute)
	o.Attempts = cmp.Or(o.Attempts, 5)
	o.GiveUp = cmp.Or(o.GiveUp, 2*time.Minute)
	return o
}

func (o RunOptions) validate() error {
	var errs []error
	if len(o.Workers) == 0 {
		errs = append(errs, errors.New("warmup: no workers"))
	}
	if o.Concurrency < 0 || o.Lease < 0 || o.Attempts < 0 || o.GiveUp < 0 || o.TokensPerSecond < 0 || o.BytesPerSecond < 0 || o.MaxBytes < 0 || o.Jitter < 0 {
		errs = append(errs, errors.New("warmup: RunOptions: a number is negative"))
	}
	return errors.Join(errs...)
}

// Report is what a run has done so far, or in the end; names of fields are stable.
type Report struct {
	Items          int64          `json:"items"`         // prompts of the manifest that can be used
	DoneItems      int64          `json:"done"`          // those that are stored now
	Failed         int64          `json:"failed"`        // those that could not be warmed, with the lines that could not be used
	UniqueBlocks   int64          `json:"unique_blocks"` // of the whole manifest
	PromptTokens   int64          `json:"prompt_tokens"` // in the full blocks of the prompts that are done
	ComputedTokens int64          `json:"computed_tokens"`
	SkippedTokens  int64          `json:"skipped_tokens"` // tokens of done prompts that nobody had to compute: shared, or stored before
	BytesStored    int64          `json:"bytes_stored"`
	Retries        int64          `json:"retries"`
	Seconds        float64        `json:"seconds"`
	TokensPerSec   float64        `json:"tokens_per_s"` // computed
	Workers        []WorkerReport `json:"workers"`

	DoneBlocks int64 `json:"done_blocks"` // of UniqueBlocks
}

// WorkerReport is one worker's part.
type WorkerReport struct {
	Name           string  `json:"name"`
	Tasks          int64   `json:"tasks"`
	ComputedTokens int64   `json:"computed_tokens"`
	BytesStored    int64   `json:"bytes_stored"`
	BusySeconds    float64 `json:"busy_s"`
	Errors         int64   `json:"errors"`
	Down           bool    `json:"down"`
}

// run is one Run of a plan.
type run struct {
	plan   *Plan
	opts   RunOptions
	tokens *rate.Limiter
	bytes  *rate.Limiter
	start  time.Time
	stop   context.CancelCauseFunc

	mu     sync.Mutex
	wake   *sync.Cond // something became ready, or everything has ended
	next   func() (*Task, error, bool)
	ready  taskHeap
	open   int  // tasks read and not ended
	drawn  bool // no more tasks to read
	down   int  // lanes that wait for their worker
	lastUp time.Time
	report Report
}

// windowPerLane bounds how many tasks are in memory.
const windowPerLane = 128

// Run warms everything that the plan holds, and reports also when it ends with an error: that of the job as a whole. Prompts that failed are
// counted, not returned.
func (p *Plan) Run(ctx context.Context, o RunOptions) (Report, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Report{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r := &run{plan: p, opts: o, start: time.Now(), lastUp: time.Now(), stop: stop, tokens: limiter(o.TokensPerSecond), bytes: limiter(o.BytesPerSecond)}
	r.wake = sync.NewCond(&r.mu)
	r.report = Report{Items: p.Stats.Prompts, DoneItems: p.Stats.TooShort, Failed: p.Stats.Broken, UniqueBlocks: p.Stats.UniqueBlocks}
	for _, w := range o.Workers {
		r.report.Workers = append(r.report.Workers, WorkerReport{Name: w.Name()})
	}
	next, end := iter.Pull2(p.tasks())
	defer end()
	r.next = func() (*Task, error, bool) { return next() }
	unhook := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wake.Broadcast()
	})
	defer unhook()
	var lanes sync.WaitGroup
	for i := range o.Workers {
		for range o.Concurrency {
			lanes.Go(func() { r.lane(ctx, i) })
		}
	}
	lanes.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finishReport()
	return r.report, context.Cause(ctx)
}

func limiter(perSecond float64) *rate.Limiter {
	if perSecond == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond))) // a second's worth may come at once
}

// lane does one task after another on one worker.
func (r *run) lane(ctx context.Context, worker int) {
	w := r.opts.Workers[worker]
	for {
		t := r.take(ctx)
		if t == nil {
			return
		}
		err := r.do(ctx, worker, t)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
		case errors.Is(err, ErrStop), errors.Is(err, ErrBudget), errors.Is(err, ErrChanged):
			r.stop(err)
			return
		case errors.Is(err, ErrWorker):
			r.retry(t, worker, err)
			r.recover(ctx, worker, w, err)
		default:
			r.end(t, worker, Outcome{}, err)
		}
	}
}

// do warms one task.
func (r *run) do(ctx context.Context, worker int, t *Task) error {
	if t.From == t.To && !t.rec.pin && (t.parent == nil || !t.parent.failed) {
		r.end(t, -1, Outcome{}, nil) // what others have stored is all of it
		return nil
	}
	if r.opts.Gate != nil {
		if err := r.opts.Gate(ctx); err != nil {
			return err
		}
	}
	if r.opts.Jitter > 0 {
		if err := pause.For(ctx, rand.N(r.opts.Jitter)); err != nil {
			return err
		}
	}
	req, err := r.plan.request(ctx, t)
	if err != nil {
		return err
	}
	began := time.Now()
	leased, cancel := context.WithTimeout(ctx, r.opts.Lease)
	defer cancel()
	out, err := r.opts.Workers[worker].Warm(leased, req)
	if err != nil {
		if leased.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %s: lease of %v ran out: %w", ErrWorker, r.opts.Workers[worker].Name(), r.opts.Lease, err)
		}
		return err
	}
	r.mu.Lock()
	r.report.Workers[worker].BusySeconds += time.Since(began).Seconds()
	r.mu.Unlock()
	r.end(t, worker, out, nil)
	// Paid afterwards, when it is known what it was: a run over a warm tier is not held up.
	if err := pay(ctx, r.tokens, out.ComputedTokens); err != nil {
		return err
	}
	if err := pay(ctx, r.bytes, int(out.StoredBytes)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.opts.MaxBytes; b > 0 && r.report.BytesStored >= b {
		return fmt.Errorf("%w: %d of %d bytes", ErrBudget, r.report.BytesStored, b)
	}
	return nil
}

// pay waits until n units are over.
func pay(ctx context.Context, l *rate.Limiter, n int) error {
	for l.Limit() != rate.Inf && n > 0 {
		part := min(n, l.Burst())
		if err := l.WaitN(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// request reads the task's prompt again and cuts it to the task's blocks.
func (p *Plan) request(ctx context.Context, t *Task) (Request, error) {
	it, err := p.opts.Source.reread(t.rec.place)
	if err != nil {
		return Request{}, err
	}
	tokens, err := p.opts.Encoder.Encode(ctx, []Item{it})
	if err != nil {
		return Request{}, err
	}
	chain := appendChain(nil, it.Salt, tokens[0], p.BlockTokens)
	if len(chain) != 8*t.rec.blocks || binary.BigEndian.Uint64(chain[len(chain)-8:]) != t.rec.check {
		return Request{}, fmt.Errorf("%w: %s, line %d", ErrChanged, p.opts.Source.Files[t.rec.file].Path, t.rec.number)
	}
	// A stretch that only leads to a pinned prompt is pinned by it, whose first blocks are the same.
	return Request{Tokens: tokens[0][:t.To*p.BlockTokens], Salt: it.Salt, Pin: it.Pin && t.Final}, nil
}

const (
	recoverMin = 100 * time.Millisecond
	recoverMax = 5 * time.Second
)

// recover waits until the worker answers again. While no worker does, for GiveUp long, the run ends.
func (r *run) recover(ctx context.Context, worker int, w Worker, why error) {
	r.mu.Lock()
	r.down++
	r.report.Workers[worker].Down = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.down--
		r.report.Workers[worker].Down = false
	}()
	for wait := recoverMin; ; wait = min(2*wait, recoverMax) {
		if pause.For(ctx, wait) != nil || r.idle() {
			return
		}
		ping, cancel := context.WithTimeout(ctx, recoverMax)
		err := w.Ping(ping)
		cancel()
		if errors.Is(err, ErrStop) {
			r.stop(err)
			return
		}
		if err == nil {
			return
		}
		r.mu.Lock()
		lost := r.down == len(r.opts.Workers)*r.opts.Concurrency && time.Since(r.lastUp) > r.opts.GiveUp
		r.mu.Unlock()
		if lost {
			r.stop(fmt.Errorf("%w for %v: %w", ErrNoWorkers, r.opts.GiveUp, why))
			return
		}
	}
}
