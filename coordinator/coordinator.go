package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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
	// Warmer carries out warm-ups and looks after pins; nil refuses both.
	Warmer Warmer
	// PinQuota bounds the prompts that one tenant has pinned, in bytes; default DefaultPinQuota.
	PinQuota int
	// PinRefresh is how often pins are looked after; default DefaultPinRefresh.
	PinRefresh time.Duration

	Lease     time.Duration // the workers' lease; default 5 s
	Reconcile time.Duration // between rounds, ± 20 %; default 1 s
	// Leadership is how long this coordinator leads after it last renewed its lease; default 10 s, at most a minute. One leads at a time, and
	// it alone reconciles and reclaims; all answer requests.
	Leadership time.Duration
	// Owner names this run of the process in the lease and in histories; default random. It must not survive a restart.
	Owner string
	// StateFile, if set, is where the desired records are kept as well: what Redis forgets is written again, even after every coordinator
	// has been restarted. Each coordinator has a file of its own.
	StateFile string
	// NoAutoActivate keeps the first version of a model inactive until somebody activates it.
	NoAutoActivate bool

	Now    func() time.Time // clock, for tests
	NewAct func() Act       // random bits, for tests
	Logger *slog.Logger     // nil discards
}

func (o Options) withDefaults() Options {
	o.Lease = orDefault(o.Lease, DefaultLease)
	o.Reconcile = orDefault(o.Reconcile, DefaultReconcile)
	o.PinQuota = orDefault(o.PinQuota, DefaultPinQuota)
	o.PinRefresh = orDefault(o.PinRefresh, DefaultPinRefresh)
	o.Leadership = orDefault(o.Leadership, DefaultLeadership)
	if o.Owner == "" {
		o.Owner = rand.Text()
	}
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
	if o.PinQuota < 0 || o.PinRefresh < 0 {
		errs = append(errs, fmt.Errorf("%w: Options: PinQuota %d, PinRefresh %v: want positive", ErrInvalid, o.PinQuota, o.PinRefresh))
	}
	if o.Lease < 0 || o.Reconcile < 0 {
		errs = append(errs, fmt.Errorf("%w: Options: Lease %v, Reconcile %v: want positive", ErrInvalid, o.Lease, o.Reconcile))
	}
	if o.Leadership < 0 || o.Leadership > maxLeadership {
		errs = append(errs, fmt.Errorf("%w: Options: Leadership %v: want 0 < Leadership <= %v", ErrInvalid, o.Leadership, maxLeadership))
	}
	if err := validateName("the coordinator's own name", o.Owner); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Coordinator owns the control records. Any number may run at once: every write compares what was read, so they conflict and
// try again, and the one that holds the lease reconciles and reclaims. It is safe for concurrent use.
type Coordinator struct {
	opt     Options
	metrics *metrics
	state   *stateFile // nil without one

	mu       sync.Mutex
	known    map[string]Stored    // last record written or confirmed, by model
	problems map[string]string    // why a model's last round failed; "" is the key of Redis as a whole
	reseen   map[string]time.Time // when a record was last rewritten because of what workers had seen
	losses   map[string]time.Time // since when this coordinator, not leading, remembers more than Redis holds
	beats    []Heartbeat          // of the last round
	lead     leadership
	led      bool      // lead held when last looked at, for the log
	lastOK   time.Time // end of the last round that reached Redis
	cancel   context.CancelFunc

	pinProblem string        // why the last round of looking after pins failed
	pinned     chan struct{} // holds a token when pins have changed

	wg sync.WaitGroup
}

// New checks the options and reads the state file; a damaged one is ErrState. Requests are answered before Start too; reconciliation and reclaim run after it.
func New(opt Options) (*Coordinator, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	c := &Coordinator{
		opt: opt, known: map[string]Stored{}, problems: map[string]string{}, reseen: map[string]time.Time{}, losses: map[string]time.Time{},
		lead: leadership{owner: opt.Owner}, pinned: make(chan struct{}, 1),
	}
	if opt.StateFile != "" {
		state, records, err := openState(opt.StateFile)
		if err != nil {
			return nil, err
		}
		c.state = state
		for name, r := range records {
			c.known[name] = r
			c.lead.floor = max(c.lead.floor, r.Term)
		}
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
	c.wg.Go(func() { c.leaseLoop(ctx) })
	c.wg.Go(func() { c.reconcileLoop(ctx) })
	if c.opt.Store != nil {
		c.wg.Go(func() { c.reclaimLoop(ctx) })
	}
	if c.opt.Warmer != nil {
		c.wg.Go(func() { c.warmupLoop(ctx) })
		c.wg.Go(func() { c.pinLoop(ctx) })
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
	return c.Add(ctx, model, Registration{Identity: id, Label: label})
}

// Add is Register with options: a trainer registers and activates what a step has produced in one call. What it costs depends on neither the
// number of entries nor that of workers.
func (c *Coordinator) Add(ctx context.Context, model string, q Registration) (Result, error) {
	version := orDefault(q.Label, q.Identity.Weights.Short())
	what := "register"
	if q.Activate {
		what = "activate"
	}
	res, err := c.change(ctx, proposal{what: what, version: version, model: model, create: true, fn: func(r Record, s Stamp) (Record, error) {
		return r.Add(q, !c.opt.NoAutoActivate, s)
	}})
	if err == nil {
		i := slices.IndexFunc(res.Versions, func(v Version) bool { return v.Variant == q.Identity.Variant() })
		res.Version = &res.Versions[i]
	}
	return res, err
}

// Activate makes all variants of the selected weights active; see Record.Activate.
func (c *Coordinator) Activate(ctx context.Context, model, selector string, keep bool) (Result, error) {
	return c.change(ctx, proposal{what: "activate", version: selector, model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.Activate(selector, keep, s)
	}})
}

// Purge makes all entries of the selected live variants unreachable, with AllVersions those of the model.
func (c *Coordinator) Purge(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, proposal{what: "purge", version: strings.TrimPrefix(selector, AllVersions), model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.Purge(selector, s)
	}})
}

// PurgeTenant makes all entries of one tenant unreachable; see Record.PurgeTenant. The tenant is named by block.Namespace of its salt.
func (c *Coordinator) PurgeTenant(ctx context.Context, model string, ns block.Digest) (Result, error) {
	return c.change(ctx, proposal{what: "purge-tenant", version: ns.String(), model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.PurgeTenant(ns, s)
	}})
}

// Warm lets entries of the selected variants be stored before they are activated; see Record.Warm.
func (c *Coordinator) Warm(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, proposal{what: "warm", version: selector, model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.Warm(selector, s)
	}})
}

// Drain marks the selected variants as on their way out.
func (c *Coordinator) Drain(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, proposal{what: "drain", version: selector, model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.Drain(selector, s)
	}})
}

// Revoke takes the selected variants' entries away for good.
func (c *Coordinator) Revoke(ctx context.Context, model, selector string) (Result, error) {
	return c.change(ctx, proposal{what: "revoke", version: selector, model: model, fn: func(r Record, s Stamp) (Record, error) {
		return r.Revoke(selector, s)
	}})
}

// Models lists the names of all models.
func (c *Coordinator) Models(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return c.opt.Control.Models(ctx)
}

// History lists a model's last changes, newest first.
func (c *Coordinator) History(ctx context.Context, model string) (History, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if _, err := c.opt.Control.Load(ctx, model); err != nil && !errors.Is(err, ErrRecord) {
		return History{}, err
	}
	changes, err := c.opt.Control.History(ctx, model)
	return History{Model: model, Changes: changes}, err
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
	h, err := c.opt.Control.leader(ctx)
	if err != nil {
		return Status{}, err
	}
	s.Leader = h.owner
	if s.Reclaiming, err = c.opt.Control.reclaiming(ctx); err != nil {
		return Status{}, err
	}
	c.mu.Lock()
	s.Problem = orDefault(c.problems[model], c.problems[""])
	c.mu.Unlock()
	return s, nil
}
