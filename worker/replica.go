package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// Errors that callers act on.
var (
	// ErrClosed means that the replica is shutting down.
	ErrClosed = errors.New("worker: closed")
	// ErrShape means that a checkpoint's K/V layout differs from the one the worker serves.
	ErrShape = errors.New("worker: checkpoint of another shape")
)

// Grants is where a replica learns which epochs it may use: a coordinator.Watch, or nil for a worker on its own.
type Grants interface {
	View() coordinator.View
}

// Options configure a Replica.
type Options struct {
	// Engine holds the first weights; required. The replica closes it, and every engine that replaces it.
	Engine engine.Engine
	// Label names the first weights for people, such as a file name.
	Label string
	// Cache holds K/V of the engine's layout; required. The caller closes it, after the replica.
	Cache *tiered.Cache
	// Grants tells which epochs may be used. Without it the worker stands alone: epoch 0, always granted.
	Grants Grants
	// OnExpiry says what to do when the lease has expired; default coordinator.Local.
	OnExpiry coordinator.OnExpiry
	// Secret keys the chain hashes; workers that share entries share it. Empty means block.DefaultSecret.
	Secret []byte
	// Gate says whether blocks that only the remote tier has are loaded; the zero value decides by measurements.
	Gate gate.Mode
	// MaxSequences bounds the sequences of Serving requests that run at once; more wait for their turn. Background requests have half as many places
	// of their own, at least one. Default: what the engine has room for (engine.Parallel), 16 if it computes them together (engine.Batcher), else 4.
	MaxSequences int
	// MaxQueue bounds the requests of one priority that wait; more are refused with ErrBusy. Default 64; negative for none.
	MaxQueue int
	// MaxSequenceBytes bounds the K and V that running requests may come to, for prompt and answer; requests wait while it is used up, and one that
	// needs more alone is refused. Default: what four sequences of the model's context come to, or more of them up to 1 GiB; if MaxSequences is
	// set, what all of those come to.
	MaxSequenceBytes int64
	// PrefillChunk is how many prompt tokens are computed before others get a turn. Default 128.
	PrefillChunk int
	// PrefixWait is how long a request may wait without progress for another one that computes the same prefix; then it computes it itself.
	// Default 5 s; negative: requests do not wait for each other.
	PrefixWait time.Duration
	// Logger receives changes of state, never prompts; nil discards.
	Logger *slog.Logger
}

// Replica serves one model: it answers requests and swaps weights. It is safe for concurrent use.
type Replica struct {
	opts Options

	// queue says whose turn it is; who has a turn takes the latch.
	queue *queue
	// latch is held by every running request with weight 1 and by SwapWeights with all of it. Waiters are served in order, so that a swap is
	// not starved by traffic.
	latch    *semaphore.Weighted
	schedule *schedule
	flights  *flights // nil for none

	mu struct {
		sync.Mutex // guards the fields and every change of the cache's view
		engine     engine.Engine
		label      string
		closed     bool         // nothing new is begun
		ended      bool         // Close was called
		offered    []Checkpoint // beside those that Follow was given
	}
	swaps   sync.Mutex           // one swap at a time
	prefill [2]gate.PrefillMeter // by priority, since Background work waits in between; of engines of one shape: a swap changes no speed
}

// wholeLatch is more than there can be requests.
const wholeLatch = 1 << 30

func (o Options) withDefaults() Options {
	if o.MaxSequences == 0 {
		o.MaxSequences = sequencesOf(o.Engine)
		if o.MaxSequenceBytes == 0 {
			// More sequences, not more memory, unless that is little: a chat that names no max_tokens takes a whole context.
			whole := sequenceBytes(o.Engine, o.Engine.ContextTokens())
			all := int64(o.MaxSequences) * whole
			if parallel(o.Engine) == 0 { // otherwise it is the memory of somebody who has made room for them
				all = min(all, littleBytes)
			}
			o.MaxSequenceBytes = max(fewSequences*whole, all)
		}
	}
	if o.MaxQueue == 0 {
		o.MaxQueue = 64
	}
	if o.PrefillChunk == 0 {
		o.PrefillChunk = 128
	}
	if o.PrefixWait == 0 {
		o.PrefixWait = 5 * time.Second
	}
	o.MaxQueue = max(o.MaxQueue, 0)
	return o
}

const (
	// fewSequences are what an engine takes that computes each by itself: more would make each as much slower.
	fewSequences = 4
	// batchSequences are what one takes that computes them together.
	batchSequences = 16
	// littleBytes is memory that any machine has that serves a model.
	littleBytes = 1 << 30
)

// sequencesOf says how many sequences fit an engine.
func sequencesOf(e engine.Engine) int {
	if n := parallel(e); n > 0 {
		return n
	}
	if _, ok := e.(engine.Batcher); ok {
		return batchSequences
	}
	return fewSequences
}

// parallel is how many sequences an engine says that it has room for, 0 if it does not say.
func parallel(e engine.Engine) int {
	if p, ok := e.(engine.Parallel); ok {
		return max(0, p.Sequences())
	}
	return 0
}

func (o Options) validate() error {
	var errs []error
	if o.MaxSequences < 1 || o.MaxSequences > 1<<16 {
		errs = append(errs, fmt.Errorf("worker: MaxSequences is %d, want 1 to %d", o.MaxSequences, 1<<16))
	}
	if o.MaxSequenceBytes < 0 {
		errs = append(errs, fmt.Errorf("worker: MaxSequenceBytes is %d, want 0 or more", o.MaxSequenceBytes))
	}
	if o.PrefillChunk < 1 {
		errs = append(errs, fmt.Errorf("worker: PrefillChunk is %d, want at least 1", o.PrefillChunk))
	}
	return errors.Join(errs...)
}

// NewReplica returns a replica that is ready to serve.
func NewReplica(opts Options) (*Replica, error) {
	if opts.Engine == nil || opts.Cache == nil {
		return nil, errors.New("worker: Options.Engine and Options.Cache are required")
	}
	if opts.OnExpiry == "" {
		opts.OnExpiry = coordinator.Local
	}
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Replica{
		opts: opts, latch: semaphore.NewWeighted(wholeLatch), schedule: newSchedule(),
		queue: &queue{places: opts.MaxSequences, backgroundPlaces: max(1, opts.MaxSequences/2), length: opts.MaxQueue, bytes: opts.MaxSequenceBytes},
	}
	if opts.PrefixWait > 0 {
		r.flights = newFlights(opts.PrefixWait)
	}
	r.mu.engine, r.mu.label = opts.Engine, opts.Label
	r.Refresh()
	return r, nil
}

// Resident returns the engine in use and the label of its weights. The engine is valid until the next swap.
func (r *Replica) Resident() (engine.Engine, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.engine, r.mu.label
}

// Cache returns the cache the replica was made with.
func (r *Replica) Cache() *tiered.Cache { return r.opts.Cache }

// Refresh brings the cache's view up to date with the grants. It is cheap; call it whenever the record may have changed, and
// several times per lease.
func (r *Replica) Refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refreshLocked()
}

func (r *Replica) refreshLocked() {
	id := r.mu.engine.Identity()
	if r.opts.Grants == nil {
		r.opts.Cache.SetView(tiered.View{Generation: tiered.Generation{Identity: id}, Access: tiered.AccessShared})
		return
	}
	r.opts.Cache.SetView(viewOf(id, r.opts.Grants.View(), r.opts.OnExpiry))
}

// viewOf derives what the cache may do with K/V of id from what the worker knows of its model's record.
func viewOf(id block.Identity, v coordinator.View, on coordinator.OnExpiry) tiered.View {
	withoutLease := tiered.AccessNone
	if on == coordinator.Local {
		withoutLease = tiered.AccessHot
	}
	ungranted := tiered.View{Generation: tiered.Generation{Identity: id}}
	if v.State == coordinator.Unsynced {
		ungranted.Access = withoutLease
		return ungranted
	}
	grant, ok := v.Grant(id.Variant())
	if !ok { // revoked, or never registered
		return ungranted
	}
	if mutation.Is(mutation.NumberOnly) {
		grant.Act = coordinator.Act{}
	}
	view := tiered.View{
		Generation: tiered.Generation{Identity: id, Epoch: grant.Epoch, Act: grant.Act},
		Access:     withoutLease, Then: withoutLease, Cuts: v.Cuts(),
	}
	if v.State == coordinator.Leased {
		view.Access, view.Until = tiered.AccessShared, v.LeaseUntil
	}
	return view
}

// SwapWeights replaces the resident weights by those that open returns. Loading happens beside traffic; then new requests wait, running
// ones end, everything cached from the old weights is dropped, the new engine takes over, and requests go on. The layout must
// stay the same (ErrShape). When it fails, nothing has changed.
func (r *Replica) SwapWeights(ctx context.Context, label string, open func(context.Context) (engine.Engine, error)) error {
	r.swaps.Lock()
	defer r.swaps.Unlock()
	next, err := open(ctx)
	if err != nil {
		return fmt.Errorf("worker: load %s: %w", label, err)
	}
	if got, want := next.Layout(), r.opts.Engine.Layout(); got.Digest() != want.Digest() {
		return errors.Join(fmt.Errorf("%w: %s has K/V layout %+v, this worker serves %+v: start a worker of its own for it", ErrShape, label, got, want), next.Close())
	}
	start := time.Now()
	if mutation.Is(mutation.SwapWithoutDraining) {
		r.latch = semaphore.NewWeighted(wholeLatch)
	}
	if err := r.latch.Acquire(ctx, wholeLatch); err != nil {
		return errors.Join(fmt.Errorf("worker: swap to %s: waiting for running requests: %w", label, err), next.Close())
	}
	defer r.latch.Release(wholeLatch)
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		return errors.Join(ErrClosed, next.Close())
	}
	old := r.mu.engine
	r.mu.engine, r.mu.label = next, label
	if !mutation.Is(mutation.SwapKeepsView) {
		r.refreshLocked() // another identity: drops hot blocks and queued spills of the old one
	}
	r.mu.Unlock()
	r.opts.Logger.Info("weights swapped", "label", label, "weights", next.Identity().Weights.Short(), "pause", time.Since(start).String())
	return old.Close()
}

// Closing reports whether requests are refused because Drain or Close was called.
func (r *Replica) Closing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.closed
}

// Drain refuses new requests and those that wait for a turn, with ErrClosed. Running ones go on.
func (r *Replica) Drain() {
	r.mu.Lock()
	r.mu.closed = true
	r.mu.Unlock()
	r.queue.close()
}

// Close drains, waits for running requests, at most until ctx ends, and closes the engine. Calling it again does nothing.
func (r *Replica) Close(ctx context.Context) error {
	r.Drain()
	r.mu.Lock()
	e, already := r.mu.engine, r.mu.ended
	r.mu.ended = true
	r.mu.Unlock()
	if already {
		return nil
	}
	if err := r.latch.Acquire(ctx, wholeLatch); err != nil {
		return fmt.Errorf("worker: close: requests still run: %w", err)
	}
	defer r.latch.Release(wholeLatch) // whoever still waits is told that it is closed
	return e.Close()
}
