package tiered

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// Options configure a Cache. The zero value of each field means its default.
type Options struct {
	// Layout of the blocks; required. A cache serves one layout for its whole life.
	Layout block.Layout
	// Remote is the shared tier; nil for none. The cache does not close it.
	Remote store.Store

	// Bounds in bytes. One that a single block does not fit is a BudgetError; the defaults are larger where blocks are large.
	HotBytes   int64         // of the hot tier; default 256 MiB, or 8 blocks; NoHotTier for none
	SpillBytes int64         // of the spill queue, which mostly is hot too; default 64 MiB, or 4 blocks
	FillBytes  int64         // of all blocks being fetched; default 32 MiB and 1/16 of HotBytes, at most 256 MiB, or 4 blocks
	TTL        time.Duration // of stored values; default 6 h

	ProbeTimeout time.Duration // how long the remote tier may take to say what it has; default 100 ms
	FetchTimeout time.Duration // how long a request waits for remote blocks altogether; default 1 s
	SpillTimeout time.Duration // of one batch of writes; default 5 s

	WritePolicy WritePolicy
	// FillLease makes requests that miss the same prefix at the same time know of each other; see claimOrWatch. Only with WriteThrough, and a Remote
	// that is store.Leaser.
	FillLease bool
	// Steps, if set, takes the place of goroutines and of the clock: for tests that decide what happens when.
	Steps *Steps
	// Encoding is how payloads are stored while the measured link is slow enough for it to pay; Raw, the default, never encodes. Every
	// reader decodes all encodings.
	Encoding codec.Encoding
	// Logger receives changes of state, never requests; nil discards.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	for d, v := range map[*time.Duration]time.Duration{
		&o.TTL: 6 * time.Hour, &o.ProbeTimeout: 100 * time.Millisecond, &o.FetchTimeout: time.Second, &o.SpillTimeout: 5 * time.Second,
	} {
		if *d == 0 {
			*d = v
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	errs := []error{o.Layout.Validate()}
	for name, v := range map[string]int64{
		"HotBytes": o.HotBytes, "SpillBytes": o.SpillBytes, "FillBytes": o.FillBytes, "TTL": int64(o.TTL),
		"ProbeTimeout": int64(o.ProbeTimeout), "FetchTimeout": int64(o.FetchTimeout), "SpillTimeout": int64(o.SpillTimeout),
	} {
		if v < 0 && (name != "HotBytes" || v != NoHotTier) {
			errs = append(errs, fmt.Errorf("tiered: %s is negative", name))
		}
	}
	if o.WritePolicy >= policies {
		errs = append(errs, fmt.Errorf("tiered: unknown WritePolicy %d", o.WritePolicy))
	}
	if o.Encoding > codec.Planes {
		errs = append(errs, fmt.Errorf("tiered: unknown %v", o.Encoding))
	} else if o.Encoding == codec.Planes && (o.Layout.DType.Size() != 2 || o.Layout.Quant != block.QuantNone) {
		errs = append(errs, fmt.Errorf("tiered: %v takes 16-bit floats that are not quantised, not %v with quantisation %v", o.Encoding, o.Layout.DType, o.Layout.Quant))
	}
	return errors.Join(errs...)
}

// Cache is the hot tier of one worker and its access to the remote tier. It is safe for concurrent use.
type Cache struct {
	opts   Options
	format *codec.Format
	remote store.Store

	viewMu sync.Mutex // serialises SetView
	view   atomic.Pointer[View]

	names    names
	slabs    *slabs
	refill   int // fills that a request has used up before it begins others
	hot      *hot
	spill    spiller
	seen     seen // with WriteOnSecondHit
	leases   leases
	link     link
	reads    gate.PathMeter
	explorer gate.Explorer
	breaker  interface{ Admits() bool } // nil: none in front of the remote tier
	fates    *fates
	flights  flights
	tenants  tenants

	scratches sync.Pool      // of *codec.Scratch
	brings    sync.Pool      // of *bringing
	shards    atomic.Uintptr // handed out to them
	stats     counters

	ctx    context.Context // ends when Close gives up draining; parent of everything in the background
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
}

// New makes a cache. It caches nothing until SetView says what computed its blocks.
func New(opts Options) (*Cache, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	format, err := codec.NewFormat(opts.Layout)
	if err != nil {
		return nil, err
	}
	slabs := newSlabs(format)
	if opts, err = opts.withBudgets(int64(slabs.bytes)); err != nil {
		return nil, err
	}
	slabs.keep = int(opts.FillBytes / int64(slabs.bytes))
	c := &Cache{opts: opts, format: format, remote: opts.Remote, hot: newHot(opts.HotBytes)}
	c.names.parts = opts.Layout.PartCount()
	c.fates = newFates(opts.TTL)
	c.breaker, _ = store.As[interface{ Admits() bool }](opts.Remote)
	c.slabs, slabs.names = slabs, &c.names
	c.refill = int(max(1, opts.FillBytes/int64(c.slabs.bytes)/4))
	c.leases.store, _ = store.As[store.Leaser](opts.Remote)
	c.scratches.New = func() any { return new(codec.Scratch) }
	c.brings.New = func() any {
		return &bringing{c: c, shard: c.shards.Add(1), layout: opts.Layout, tokens: opts.Layout.BlockTokens}
	}
	c.flights.m = map[flightKey]*fill{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.newSpiller()
	return c, nil
}

// Close stores what is queued until ctx ends, then stops everything in the background and waits for it. Requests must have
// ended before. It returns the number of queued blocks that were not stored.
func (c *Cache) Close(ctx context.Context) (lost int) {
	if c.closed.Swap(true) {
		return 0
	}
	if c.remote != nil {
		if c.opts.WritePolicy == WriteOnEvict {
			lost = c.offerHot(ctx)
		}
		c.spill.queue.WaitEmpty(ctx)
	}
	c.cancel()
	c.wg.Wait()
	lost += c.spill.queue.DropIf(spill.Shutdown, func(*entry) bool { return true })
	c.hot.drop(Generation{}, nil)
	c.slabs.close()
	return lost
}

// Flush waits until every block queued so far has been stored or dropped, or ctx ends.
func (c *Cache) Flush(ctx context.Context) error {
	if !c.spill.queue.WaitEmpty(ctx) {
		return fmt.Errorf("tiered: flush: %w", context.Cause(ctx))
	}
	return nil
}
