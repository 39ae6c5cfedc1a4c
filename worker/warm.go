package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/engine"
)

// Errors of warming.
var (
	// ErrVariant means that the resident weights are not those that the caller wants to warm.
	ErrVariant = errors.New("worker: other weights are resident")
	// ErrNotGranted means that entries of the resident weights must not be shared: they are revoked, or were never activated.
	ErrNotGranted = errors.New("worker: the resident weights are not granted")
	// ErrTier means that the remote tier cannot be used at this moment.
	ErrTier = errors.New("worker: remote tier unavailable")
)

// WarmRequest asks for the full blocks of a prompt to be stored in the remote tier.
type WarmRequest struct {
	Prompt string
	Tokens []int32 // instead of Prompt
	Salt   string
	// Variant is the only one to warm; zero means whichever is resident.
	Variant block.Variant
	// Pin takes the TTL off the prompt's blocks.
	Pin bool
	// Measure computes the prompt whatever is stored, and stores nothing: what would it cost?
	Measure bool
}

// WarmResult says what was there and what was done. Blocks are counted in tokens, like everywhere.
type WarmResult struct {
	Identity block.Identity
	Label    string
	Epoch    block.Epoch

	PromptTokens   int // all of the prompt, with the rest that fills no block
	PresentTokens  int // already stored
	LoadedTokens   int // of those, read to compute what follows
	ComputedTokens int
	StoredBytes    int64
	EncodedBytes   int64 // with Measure: what StoredBytes would be if they were encoded
	PinnedTokens   int
	Total          time.Duration
}

// warmChunk is how many tokens a warm-up computes between two looks at whether somebody waits.
const warmChunk = 32

// Warm brings the full blocks of a prompt into the remote tier and returns when they are there. What is stored already is not computed; the rest
// of the prompt that fills no block is not either, because nobody could reuse it. Between chunks it makes way for requests, stores what it has,
// and ends with ErrNotGranted when the weights lose their grant. The hot tier takes no notice.
func (r *Replica) Warm(ctx context.Context, req WarmRequest) (WarmResult, error) {
	start := time.Now()
	if err := r.serving.idle(ctx); err != nil {
		return WarmResult{}, fmt.Errorf("worker: waiting for requests to end: %w", err)
	}
	if err := r.latch.Acquire(ctx, 1); err != nil {
		return WarmResult{}, fmt.Errorf("worker: waiting for a turn: %w", err)
	}
	defer r.latch.Release(1)
	r.mu.Lock()
	e, label, closed := r.mu.engine, r.mu.label, r.mu.closed
	r.mu.Unlock()
	if closed {
		return WarmResult{}, ErrClosed
	}
	if v := e.Identity().Variant(); req.Variant != (block.Variant{}) && v != req.Variant {
		return WarmResult{}, fmt.Errorf("%w: %v (%s), not %v", ErrVariant, v, label, req.Variant)
	}
	tokens, err := promptTokens(e, Request{Prompt: req.Prompt, Tokens: req.Tokens})
	if err != nil {
		return WarmResult{}, err
	}
	w := warming{replica: r, cache: r.opts.Cache, engine: e, view: r.opts.Cache.View(), tokens: tokens,
		chain: block.NewChain(r.opts.Secret, e.Identity(), req.Salt, e.Layout().BlockTokens),
		res:   WarmResult{Identity: e.Identity(), Label: label, PromptTokens: len(tokens)}}
	w.res.Epoch = w.view.Epoch
	w.chain.After(w.view.Cuts[w.chain.Namespace()])
	w.hashes = w.chain.AppendHashes(nil, tokens)
	if req.Measure {
		err = w.measure(ctx)
	} else {
		err = w.run(ctx, req.Pin)
	}
	w.res.Total = time.Since(start)
	return w.res, tierError(w.view, err)
}

// tierError says in this package's words why a cache refused.
func tierError(v tiered.View, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tiered.ErrStale), errors.Is(err, tiered.ErrNotShared) && v.Access == tiered.AccessNone:
		return fmt.Errorf("%w: %w", ErrNotGranted, err)
	case errors.Is(err, engine.ErrClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errEngine):
		return err
	}
	return fmt.Errorf("%w: %w", ErrTier, err)
}

// errEngine marks what is not the tier's fault.
var errEngine = errors.New("worker: warm")

// warming is one warm-up between engine and cache.
type warming struct {
	replica *Replica
	cache   *tiered.Cache
	engine  engine.Engine
	view    tiered.View
	chain   *block.Chain
	tokens  []int32
	hashes  []block.Hash // of the full blocks
	res     WarmResult
}

func (w *warming) run(ctx context.Context, pin bool) error {
	ns, bt := w.chain.Namespace(), w.engine.Layout().BlockTokens
	present, err := w.cache.Stored(ctx, w.view, ns, w.hashes)
	if err != nil {
		return err
	}
	w.res.PresentTokens = present * bt
	if present < len(w.hashes) {
		if err := w.compute(ctx, present); err != nil {
			return err
		}
	}
	if pin {
		n, err := w.cache.Pin(ctx, w.view, ns, w.hashes)
		if err != nil {
			return err
		}
		w.res.PinnedTokens = n * bt
	}
	return nil
}

// compute loads the first present blocks and computes and stores the others.
func (w *warming) compute(ctx context.Context, present int) error {
	seq, err := w.engine.NewSequence()
	if err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	defer seq.Close()
	l, ns := w.engine.Layout(), w.chain.Namespace()
	loaded, err := w.cache.Load(ctx, w.view, ns, w.hashes[:present], func(i int, p block.Part, payload []byte) error {
		if err := seq.Import(i*l.BlockTokens, p, payload); err != nil {
			return fmt.Errorf("%w: import: %w", errEngine, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := seq.Skip(loaded * l.BlockTokens); err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	w.res.LoadedTokens = loaded * l.BlockTokens
	perChunk := max(1, warmChunk/l.BlockTokens)
	for at := loaded; at < len(w.hashes); at += perChunk {
		if err := w.replica.serving.idle(ctx); err != nil {
			return err
		}
		end := min(at+perChunk, len(w.hashes))
		if _, err := seq.Prefill(ctx, w.tokens[at*l.BlockTokens:end*l.BlockTokens]); err != nil {
			return fmt.Errorf("%w: %w", errEngine, err)
		}
		w.res.ComputedTokens += (end - at) * l.BlockTokens
		n, err := w.cache.StoreDirect(ctx, w.view, ns, w.hashes[at:end], at, func(i int, p block.Part, dst []byte) error {
			return seq.Export((at+i)*l.BlockTokens, p, dst)
		})
		w.res.StoredBytes += n
		if err != nil {
			return err
		}
	}
	return nil
}

// measure computes everything, keeps nothing, and weighs it.
func (w *warming) measure(ctx context.Context) error {
	seq, err := w.engine.NewSequence()
	if err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	defer seq.Close()
	bt := w.engine.Layout().BlockTokens
	if len(w.hashes) == 0 {
		return nil
	}
	if _, err := seq.Prefill(ctx, w.tokens[:len(w.hashes)*bt]); err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	w.res.ComputedTokens = len(w.hashes) * bt
	w.res.StoredBytes, w.res.EncodedBytes, err = w.cache.Weigh(w.view, w.chain.Namespace(), w.hashes, func(i int, p block.Part, dst []byte) error {
		return seq.Export(i*bt, p, dst)
	})
	return err
}

// turns counts the requests that somebody waits for, so that what nobody waits for can stand back. The zero value is ready.
type turns struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n falls to 0
}

// begin counts a request until the returned function is called.
func (t *turns) begin() (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n++; t.n == 1 {
		t.none = make(chan struct{})
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.n--; t.n == 0 {
			close(t.none)
		}
	}
}

// idle waits until no request is counted, or ctx ends.
func (t *turns) idle(ctx context.Context) error {
	for {
		t.mu.Lock()
		n, none := t.n, t.none
		t.mu.Unlock()
		if n == 0 {
			return ctx.Err()
		}
		select {
		case <-none:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
