package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
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
	// Names asks what the prompt's blocks are called, and for nothing else.
	Names bool
	// Look counts what is stored already, and does nothing else.
	Look bool
	// Unpin gives the prompt's blocks their TTL back, and does nothing else.
	Unpin bool
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
	Hashes         []block.Hash // with Names
	Namespace      block.Digest // with Names
	Total          time.Duration
}

// warmChunk is how many tokens a warm-up computes before it stores them, and at once unless requests keep interrupting it: as many as engines like to take.
const warmChunk = 128

// Warm brings the full blocks of a prompt into the remote tier and returns when they are there. What is stored already is not computed; the rest
// of the prompt that fills no block is not either, because nobody could reuse it. It makes way for requests at once, stores chunk by chunk what it has,
// and ends with ErrNotGranted when the weights lose their grant. The hot tier takes no notice.
func (r *Replica) Warm(ctx context.Context, req WarmRequest) (WarmResult, error) {
	start := time.Now()
	a, err := r.admit(ctx, &Request{Prompt: req.Prompt, Tokens: req.Tokens, Salt: req.Salt, Priority: Background})
	if err != nil {
		return WarmResult{}, err
	}
	defer a.leave()
	id := a.engine.Identity()
	if v := id.Variant(); req.Variant != (block.Variant{}) && v != req.Variant {
		return WarmResult{}, fmt.Errorf("%w: %v (%s), not %v", ErrVariant, v, a.res.Label, req.Variant)
	}
	w := warming{answer: a, cache: r.opts.Cache, engine: a.engine, view: r.opts.Cache.View(), tokens: a.prompt, chain: a.chain(),
		res: WarmResult{Identity: id, Label: a.res.Label, PromptTokens: len(a.prompt)}}
	w.res.Epoch = w.view.Epoch
	w.chain.After(w.view.Cuts[w.chain.Namespace()])
	w.hashes = w.chain.AppendHashes(nil, w.tokens)
	switch {
	case req.Measure:
		err = w.measure(ctx)
	case req.Names:
		w.res.Hashes, w.res.Namespace = w.hashes, w.chain.Namespace()
	case req.Look:
		_, err = w.look(ctx)
	case req.Unpin:
		err = w.cache.Unpin(ctx, w.view, w.chain.Namespace(), w.hashes)
	default:
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
	answer *answer
	cache  *tiered.Cache
	engine engine.Engine
	view   tiered.View
	chain  *block.Chain
	tokens []int32
	hashes []block.Hash // of the full blocks
	piece  int          // tokens to compute at once; 0 for a whole chunk
	res    WarmResult
}

func (w *warming) run(ctx context.Context, pin bool) error {
	ns, bt := w.chain.Namespace(), w.engine.Layout().BlockTokens
	present, err := w.look(ctx)
	if err != nil {
		return err
	}
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

// look counts the blocks that are stored.
func (w *warming) look(ctx context.Context) (present int, err error) {
	if err := w.wait(ctx); err != nil {
		return 0, err
	}
	present, err = w.cache.Stored(ctx, w.view, w.chain.Namespace(), w.hashes)
	w.res.PresentTokens = present * w.engine.Layout().BlockTokens
	return present, err
}

// compute loads the first present blocks and computes and stores the others.
func (w *warming) compute(ctx context.Context, present int) error {
	seq, err := w.engine.NewSequence()
	if err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	defer seq.Close()
	if err := resumeAlone(ctx, seq, w.tokens); err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	l, ns := w.engine.Layout(), w.chain.Namespace()
	// From the front to the first that is missing: what is computed has to be stored, too.
	out, err := w.cache.Bring(ctx, tiered.Lookup{
		View: w.view, Namespace: ns, Chain: w.hashes[:present], Mode: gate.Always, Whole: true, Passing: true, Wait: loadWait,
	}, &loading{Sequence: seq})
	if err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	if out.Miss == tiered.MissEpoch || out.Miss == tiered.MissTenant {
		return tiered.ErrStale
	}
	loaded := (out.Hot + out.Remote) / l.BlockTokens
	w.res.LoadedTokens = loaded * l.BlockTokens
	perChunk := max(1, warmChunk/l.BlockTokens)
	if _, ok := seq.(engine.Generator); ok {
		perChunk = len(w.hashes) // what it has computed is read back as a whole
	}
	for at := loaded; at < len(w.hashes); at += perChunk {
		end := min(at+perChunk, len(w.hashes))
		if err := w.prefill(ctx, seq, w.tokens[at*l.BlockTokens:end*l.BlockTokens]); err != nil {
			return err
		}
		w.res.ComputedTokens += (end - at) * l.BlockTokens
		if err := w.wait(ctx); err != nil {
			return err
		}
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

// loadWait is how long a warm-up waits for what is stored: it has time.
const loadWait = time.Minute

// loading is a sequence as the cache sees it that only takes in what there is.
type loading struct{ engine.Sequence }

// Place implements tiered.Sink.
func (l *loading) Place(pos int, p block.Part, kv []byte) error { return l.Import(pos, p, kv) }

// Compute implements tiered.Sink. Lookup.Whole says that it is never asked.
func (*loading) Compute(context.Context, int) error { return engine.ErrUnavailable }

// wait returns when nobody is being served.
func (w *warming) wait(ctx context.Context) error {
	for quiet := w.answer.replica.queue.quiet(); quiet != nil; quiet = w.answer.replica.queue.quiet() {
		select {
		case <-quiet:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// prefill computes tokens while nobody is being served. When a request comes, what is being computed is given up and computed again later, half as
// much at once: where the pauses are short, there has to be something that fits in.
func (w *warming) prefill(ctx context.Context, seq engine.Sequence, tokens []int32) error {
	for end := seq.Len() + len(tokens); seq.Len() < end; {
		if err := w.wait(ctx); err != nil {
			return err
		}
		rest := tokens[len(tokens)-(end-seq.Len()):]
		if w.piece > 0 {
			rest = rest[:min(w.piece, len(rest))]
		}
		disturbed, err := w.turn(ctx, seq, rest)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case disturbed:
			w.piece = max(1, len(rest)/2)
		case err != nil:
			return fmt.Errorf("%w: %w", errEngine, err)
		case w.piece > 0:
			if w.piece *= 2; w.piece >= warmChunk {
				w.piece = 0
			}
		}
	}
	return nil
}

// turn computes tokens unless a request comes. A Generator cannot be interrupted without losing everything, and is not.
func (w *warming) turn(ctx context.Context, seq engine.Sequence, tokens []int32) (disturbed bool, err error) {
	if g, ok := seq.(engine.Generator); ok {
		return false, g.Generate(ctx, tokens, engine.GenerateOptions{}, func(engine.Generated) bool { return false })
	}
	r := w.answer.replica
	defer r.schedule.opened()() // only now: requests that are alone compute without it
	calm, end := r.queue.whileQuiet(ctx)
	defer end()
	_, err = r.schedule.do(work{ctx: calm, engine: w.engine, seq: seq, tokens: tokens}, false)
	return err != nil && errors.Is(context.Cause(calm), errDisturbed), err
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
	if err := resumeAlone(ctx, seq, w.tokens); err != nil {
		return fmt.Errorf("%w: %w", errEngine, err)
	}
	if err := w.prefill(ctx, seq, w.tokens[:len(w.hashes)*bt]); err != nil {
		return err
	}
	w.res.ComputedTokens = len(w.hashes) * bt
	w.res.StoredBytes, w.res.EncodedBytes, err = w.cache.Weigh(w.view, w.chain.Namespace(), w.hashes, func(i int, p block.Part, dst []byte) error {
		return seq.Export(i*bt, p, dst)
	})
	return err
}
