package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Defaults of the worker's side and of the coordinator's.
const (
	DefaultPoll  = time.Second
	DefaultLease = 5 * time.Second
	DefaultBeat  = 2 * time.Second
)

// WatchOptions configure a Watch. Control and Model are required.
type WatchOptions struct {
	Control *Control
	Model   string
	// Incarnation names this run of the process; default random. It must not survive a restart.
	Incarnation string

	Poll  time.Duration // between polls, ± 20 %; default 1 s
	Lease time.Duration // how long a record that was read may be trusted; default 5 s, more than twice Poll
	Beat  time.Duration // between heartbeats; default 2 s, below HeartbeatTTL

	// Info is asked before every heartbeat, from the watch's goroutine; nil sends none.
	Info func() Info
	// OnChange is called from the watch's goroutine after the view has changed to another generation and before that
	// generation is acknowledged: whatever it drops is gone when the coordinator believes so. It must not block for long,
	// since no poll runs meanwhile.
	OnChange func(View)

	Now    func() time.Time // clock, for tests; must keep the monotonic reading
	Logger *slog.Logger     // nil discards
}

func (o WatchOptions) withDefaults() WatchOptions {
	if o.Incarnation == "" {
		o.Incarnation = rand.Text()
	}
	o.Poll = orDefault(o.Poll, DefaultPoll)
	o.Lease = orDefault(o.Lease, DefaultLease)
	o.Beat = orDefault(o.Beat, DefaultBeat)
	if o.Info == nil {
		o.Info = func() Info { return Info{} }
	}
	if o.OnChange == nil {
		o.OnChange = func(View) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o WatchOptions) validate() error {
	var errs []error
	if o.Control == nil {
		errs = append(errs, fmt.Errorf("%w: WatchOptions.Control is nil", ErrInvalid))
	}
	if err := ValidateModel(o.Model); err != nil {
		errs = append(errs, err)
	}
	if err := validateName("the worker's incarnation", o.Incarnation); err != nil {
		errs = append(errs, err)
	}
	if o.Poll <= 0 || o.Lease < 2*o.Poll {
		errs = append(errs, fmt.Errorf("%w: WatchOptions: Poll %v, Lease %v: want 0 < 2×Poll <= Lease", ErrInvalid, o.Poll, o.Lease))
	}
	if o.Beat <= 0 || o.Beat >= HeartbeatTTL {
		errs = append(errs, fmt.Errorf("%w: WatchOptions: Beat %v: want 0 < Beat < %v", ErrInvalid, o.Beat, HeartbeatTTL))
	}
	return errors.Join(errs...)
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Watch is a worker's view of its model's record, kept fresh in the background. Reading it is lock-free and never waits for Redis.
type Watch struct {
	opt  WatchOptions
	snap atomic.Pointer[snapshot]

	kick   chan struct{} // capacity 1: poll now; a full channel already says so
	beat   chan struct{} // capacity 1: send a heartbeat now
	hinted atomic.Uint64 // highest generation a hint has promised, 0 for none

	mu     sync.Mutex // guards what follows
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// Touched by the run goroutine only.
	lastBeat, lastPoll time.Time
	lastState          LeaseState
	acked, reported    uint64 // generation acknowledged and generation refused, as of the last heartbeat that arrived
}

// NewWatch checks the options. The watch is unsynced until Start has polled.
func NewWatch(opt WatchOptions) (*Watch, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	w := &Watch{opt: opt, kick: make(chan struct{}, 1), beat: make(chan struct{}, 1), lastState: Unsynced}
	w.snap.Store(&snapshot{view: View{Model: opt.Model, State: Unsynced}, changed: make(chan struct{})})
	return w, nil
}

// Start begins to poll, to listen for hints and to send heartbeats. Call it once.
func (w *Watch) Start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel != nil {
		panic("coordinator: Watch started twice")
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.wg.Go(func() { w.run(ctx) })
	w.wg.Go(func() { w.listen(ctx) })
}

// Close stops the watch, waits for its goroutines, and takes the worker off the list of the living. The last view stays readable, and
// its lease runs out.
func (w *Watch) Close() error {
	w.mu.Lock()
	cancel := w.cancel
	w.mu.Unlock()
	if cancel == nil {
		return nil
	}
	cancel()
	w.wg.Wait()
	ctx, stop := context.WithTimeout(context.Background(), w.opt.Poll)
	defer stop()
	return w.opt.Control.Leave(ctx, w.opt.Incarnation)
}

// Incarnation is this worker's name in heartbeats.
func (w *Watch) Incarnation() string { return w.opt.Incarnation }

// View returns what is known now.
func (w *Watch) View() View {
	s := w.snap.Load()
	v := s.view
	v.State = s.stateAt(w.opt.Now(), w.opt.Lease)
	return v
}

// Grant returns the grant of a variant under the current record, whatever the lease; see View.Usable.
func (w *Watch) Grant(variant block.Variant) (Grant, bool) { return w.snap.Load().view.Grant(variant) }

// Changed returns a channel that is closed when a generation after the current view's is adopted. Take it before the view it is to follow.
func (w *Watch) Changed() <-chan struct{} { return w.snap.Load().changed }

// Await waits until a generation of at least gen was adopted, and polls at once if it was not yet.
func (w *Watch) Await(ctx context.Context, gen uint64) (View, error) {
	for {
		changed := w.Changed()
		if v := w.View(); v.Gen >= gen && v.Gen > 0 {
			return v, nil
		}
		w.Poll()
		select {
		case <-changed:
		case <-time.After(w.opt.Poll / 4):
		case <-ctx.Done():
			return w.View(), fmt.Errorf("coordinator: waiting for generation %d of %s: %w", gen, w.opt.Model, context.Cause(ctx))
		}
	}
}

// Poll asks for a poll now, without waiting for it.
func (w *Watch) Poll() { poke(w.kick) }

// Announce asks for a heartbeat now: after a change of what Info returns.
func (w *Watch) Announce() { poke(w.beat) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
