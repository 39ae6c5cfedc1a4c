package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
)

// DefaultReconcile is how often a coordinator compares what it remembers with what Redis holds, ± 20 %.
const DefaultReconcile = time.Second

const (
	// maxTries is how often a change is tried anew when somebody else's came first.
	maxTries = 16
	// roundTimeout bounds one round over all models.
	roundTimeout = 10 * time.Second
	// opTimeout bounds what one request does in Redis.
	opTimeout = 3 * time.Second
)

// Options configure a Coordinator. Control is required.
type Options struct {
	Control *Control
	// Store is where dead epochs are deleted from; nil leaves that to other coordinators and to the entries' TTL.
	Store store.Prefixed

	Lease     time.Duration // the workers' lease; default 5 s
	Reconcile time.Duration // between rounds, ± 20 %; default 1 s
	// NoAutoActivate keeps the first version of a model inactive until somebody activates it.
	NoAutoActivate bool

	Now    func() time.Time // clock, for tests
	NewAct func() Act       // random bits, for tests
	Logger *slog.Logger     // nil discards
}

func (o Options) withDefaults() Options {
	o.Lease = orDefault(o.Lease, DefaultLease)
	o.Reconcile = orDefault(o.Reconcile, DefaultReconcile)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.NewAct == nil {
		o.NewAct = func() (a Act) {
			_, _ = rand.Read(a[:]) // never fails
			return a
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Control == nil {
		errs = append(errs, fmt.Errorf("%w: Options.Control is nil", ErrInvalid))
	}
	if o.Lease < 0 || o.Reconcile < 0 {
		errs = append(errs, fmt.Errorf("%w: Options: Lease %v, Reconcile %v: want positive", ErrInvalid, o.Lease, o.Reconcile))
	}
	return errors.Join(errs...)
}

// Coordinator owns the control records. Any number may run at once: every write compares what was read, so they conflict and
// try again. It is safe for concurrent use.
type Coordinator struct {
	opt     Options
	metrics *metrics

	mu       sync.Mutex
	known    map[string]Stored    // last record written or confirmed, by model
	problems map[string]string    // why a model's last round failed; "" is the key of Redis as a whole
	reseen   map[string]time.Time // when a record was last rewritten because of what workers had seen
	beats    []Heartbeat          // of the last round
	lastOK   time.Time            // end of the last round that reached Redis
	cancel   context.CancelFunc

	wg sync.WaitGroup
}

// New checks the options. Requests are answered before Start too; reconciliation and reclaim run after it.
func New(opt Options) (*Coordinator, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	c := &Coordinator{
		opt: opt, known: map[string]Stored{}, problems: map[string]string{}, reseen: map[string]time.Time{},
	}
	c.metrics = newMetrics(c)
	return c, nil
}

// Start begins to reconcile and to reclaim in the background. Call it once.
func (c *Coordinator) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		panic("coordinator: started twice")
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	c.wg.Go(func() { c.reconcileLoop(ctx) })
	if c.opt.Store != nil {
		c.wg.Go(func() { c.reclaimLoop(ctx) })
	}
}

// Close stops the background work and waits for it. What was not reclaimed stands in the record, for the next start.
func (c *Coordinator) Close() error {
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	if cancel != nil {
		cancel()
		c.wg.Wait()
	}
	return nil
}

// Register makes a variant of a model known, and the model with it. See Record.Register for when it is activated too.
func (c *Coordinator) Register(ctx context.Context, model string, id block.Identity, label string) (Result, error) {
	res, err := c.change(ctx, "register", model, true, func(r Record, s Stamp) (Record, error) {
		return r.Register(id, label, !c.opt.NoAutoActivate, s)
	})
	if err == nil {
		i := slices.IndexFunc(res.Versions, func(v Version) bool { return v.Variant == id.Variant() })
		res.Version = &res.Versions[i]
	}
	return res, err
}

// Activate makes all variants of the selected weights active; see Record.Activate.
func (c *Coordinator) Activate(ctx context.Context, model, selector string, keep bool) (Result, error) {
	return c.change(ctx, "activate", model, false, func(r Record, s Stamp) (Record, error) { return r.Activate(selector, keep, s) })
}

// Purge makes all entries of the selected live variants unreachable, "" meaning all of the model.
func (c *Coordinator) Purge(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, "purge", model, false, func(r Record, s Stamp) (Record, error) { return r.Purge(selector, s) })
}

// Drain marks the selected variants as on their way out.
func (c *Coordinator) Drain(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, "drain", model, false, func(r Record, s Stamp) (Record, error) { return r.Drain(selector, s) })
}

// Revoke takes the selected variants' entries away for good.
func (c *Coordinator) Revoke(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, "revoke", model, false, func(r Record, s Stamp) (Record, error) { return r.Revoke(selector, s) })
}

// Models lists the names of all models.
func (c *Coordinator) Models(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return c.opt.Control.Models(ctx)
}

// Status reads a model's record and the heartbeats of its workers.
func (c *Coordinator) Status(ctx context.Context, model string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	// Heartbeats first: a worker may then seem to lag behind a record that has just changed, never the reverse.
	beats, err := c.opt.Control.Workers(ctx)
	if err != nil {
		return Status{}, err
	}
	found, err := c.opt.Control.Load(ctx, model)
	if err != nil {
		return Status{}, err
	}
	s := statusOf(found.Record, found.Sum(), beats)
	c.mu.Lock()
	s.Problem = orDefault(c.problems[model], c.problems[""])
	c.mu.Unlock()
	return s, nil
}

func (c *Coordinator) change(ctx context.Context, kind, model string, create bool, fn func(Record, Stamp) (Record, error)) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	stored, changed, err := c.update(ctx, model, create, fn)
	if err != nil {
		return Result{}, err
	}
	if changed {
		c.metrics.transitions.WithLabelValues(kind).Inc()
		c.opt.Logger.Info("record changed", "model", model, "change", kind, "gen", stored.Gen)
	}
	return Result{Model: model, Gen: stored.Gen, Changed: changed, Versions: stored.Versions()}, nil
}

// update applies fn to a model's record, by compare-and-set until it holds. What Redis has lost of what this coordinator remembers is put
// back in the same write, so that no change is ever built on a record that went backwards.
func (c *Coordinator) update(ctx context.Context, model string, create bool, fn func(Record, Stamp) (Record, error)) (Stored, bool, error) {
	if err := ValidateModel(model); err != nil {
		return Stored{}, false, err
	}
	for try := 1; ; try++ {
		stored, changed, err := c.tryUpdate(ctx, model, create, fn)
		if !errors.Is(err, ErrConflict) || try == maxTries {
			return stored, changed, err
		}
		c.metrics.conflicts.Inc()
		sleep(ctx, mathrand.N(time.Duration(try)*2*time.Millisecond))
	}
}

func (c *Coordinator) tryUpdate(ctx context.Context, model string, create bool, fn func(Record, Stamp) (Record, error)) (Stored, bool, error) {
	// What is remembered is looked up before Redis is read: had another request of ours written in between, its write would
	// look like one that Redis has lost.
	known := c.remembered(model)
	prev, found, err := c.load(ctx, model)
	if err != nil {
		return Stored{}, false, err
	}
	if found == nil && known == nil && len(prev.raw) > 0 {
		return Stored{}, false, fmt.Errorf("%w: %s cannot be read and this coordinator remembers none: restore or delete %s",
			ErrRecord, model, recordPrefix+model)
	}
	stamp := Stamp{Now: c.opt.Now(), Act: c.opt.NewAct()}
	base, reason, err := Reconcile(known, found, nil, stamp)
	if err != nil {
		return Stored{}, false, err
	}
	if base.V == 0 {
		if !create {
			return Stored{}, false, fmt.Errorf("%w: %s", ErrNoModel, model)
		}
		base = NewRecord(model)
	}
	next, err := fn(base, stamp)
	if err != nil {
		return Stored{}, false, err
	}
	if reason == reasonNone && next.Gen == base.Gen {
		if found == nil {
			return Stored{}, false, fmt.Errorf("%w: %s", ErrNoModel, model)
		}
		c.remember(*found)
		return *found, false, nil
	}
	stored, err := c.write(ctx, prev, next, reason)
	return stored, err == nil && next.Gen != base.Gen, err
}

// load reads a record; a missing or damaged one is nil, and prev is what a write has to replace.
func (c *Coordinator) load(ctx context.Context, model string) (prev Stored, found *Stored, err error) {
	prev, err = c.opt.Control.Load(ctx, model)
	switch {
	case err == nil:
		return prev, &prev, nil
	case errors.Is(err, ErrNoModel), errors.Is(err, ErrRecord):
		return prev, nil, nil
	}
	return prev, nil, err
}

// write replaces prev by next and tells the workers.
func (c *Coordinator) write(ctx context.Context, prev Stored, next Record, reason string) (Stored, error) {
	stored, err := c.opt.Control.Swap(ctx, prev, next)
	if err != nil {
		return Stored{}, err
	}
	c.remember(stored)
	if reason != reasonNone {
		c.metrics.reasserts.WithLabelValues(reason).Inc()
		c.opt.Logger.Warn("record written again", "model", next.Model, "reason", reason, "gen", next.Gen, "before", prev.Gen)
	}
	// Workers poll anyway, so a lost hint is not the caller's concern; and it must not be lost because the caller went away.
	hint, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if err := c.opt.Control.Hint(hint, next.Model, next.Gen); err != nil {
		c.metrics.hintErrors.Inc()
	}
	return stored, nil
}

func (c *Coordinator) remembered(model string) *Stored {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.known[model]; ok {
		return &s
	}
	return nil
}

// remember keeps s unless a later one is remembered already: requests run side by side.
func (c *Coordinator) remember(s Stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.known[s.Model]; !ok || s.Gen > old.Gen {
		c.known[s.Model] = s
	}
}
