package llamacpp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// Engine is a llama-server as an [engine.Engine]. It is safe for concurrent use.
type Engine struct {
	opts      Options
	id        string // of this process, in names of files
	client    *client
	tokenizer *tokenizer
	root      *os.Root // the slot directory; nil if nothing is cached
	pool      *pool
	shape     slotShape
	layout    block.Layout
	identity  block.Identity
	context   int
	file      modelFile
	template  engine.ChatTemplate
	cached    bool // K/V can be exported and imported at all

	attesting  *semaphore.Weighted // one at a time
	server     props               // guarded by attesting
	canarySum  block.Digest
	asked      time.Time    // when a server that is not trusted was last looked at; guarded by attesting
	attested   atomic.Int64 // client.changes when the server was last known to be the same
	attestedAt atomic.Int64 // when that was, in ns since started
	started    time.Time
	off        atomic.Pointer[string]
	foreign    atomic.Bool
	closed     atomic.Bool
	stats      struct{ restored, saved, failed, reused, computed, busy atomic.Int64 }
}

// Stats are counts since Open.
type Stats struct {
	Restored int64 // slot files that the server has taken
	Saved    int64 // slot files that were read back for what was new in them
	Failed   int64 // either that did not work
	// Prompt tokens by what the server says that it did: found in its slot, or computed.
	ReusedTokens, ComputedTokens int64
	// Computing is how long the server says that it computed, prompts and answers.
	Computing time.Duration
}

// Stats returns the counts so far.
func (e *Engine) Stats() Stats {
	return Stats{Restored: e.stats.restored.Load(), Saved: e.stats.saved.Load(), Failed: e.stats.failed.Load(),
		ReusedTokens: e.stats.reused.Load(), ComputedTokens: e.stats.computed.Load(), Computing: time.Duration(e.stats.busy.Load())}
}

var (
	_ engine.Engine    = (*Engine)(nil)
	_ engine.Templater = (*Engine)(nil)
	_ engine.Sequence  = (*sequence)(nil)
	_ engine.Generator = (*sequence)(nil)
	_ engine.Resumer   = (*sequence)(nil)
)

// Open digests the model file, waits for the server, and learns from it what its K/V looks like. A server that cannot be used as a
// cache's engine is still served from, without one: Degraded says why. An error means that it cannot be served from at all, or that
// the file is not the one that it has loaded.
func Open(ctx context.Context, opts Options) (*Engine, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	file, err := readModelFile(opts.Checkpoint)
	if err != nil {
		return nil, err
	}
	server, err := await(ctx, opts)
	if err != nil {
		return nil, err
	}
	c, err := newClient(opts, server.Slots+1)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opts: opts, id: strings.ToLower(rand.Text()[:8]), client: c, file: file, server: server, context: server.Defaults.Context,
		pool: newPool(server.Slots), attesting: semaphore.NewWeighted(1), layout: uncached(opts.BlockTokens),
		started: time.Now(), template: engine.ChatTemplate{Source: server.Template, BOS: server.BOS, EOS: server.EOS},
	}
	if err := e.start(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// await polls a server until it has loaded its model.
func await(ctx context.Context, opts Options) (props, error) {
	c, err := newClient(opts, 1)
	if err != nil {
		return props{}, err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, opts.Wait)
	defer cancel()
	said := false
	for {
		p, err := c.props(ctx)
		if err == nil {
			return p, nil
		}
		if !said {
			opts.Logger.Info("waiting for llama-server", "url", opts.URL, "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return props{}, fmt.Errorf("not ready within %v: %w", opts.Wait, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (e *Engine) start(ctx context.Context) error {
	model, err := e.client.model(ctx)
	if err != nil {
		return err
	}
	if err := e.file.matches(e.server.ModelPath, model); err != nil {
		return err
	}
	if e.tokenizer, err = newTokenizer(ctx, e.client, model.Vocab, e.server, e.file.pieces, &e.foreign); err != nil {
		return err
	}
	if e.tokenizer.pieces == nil {
		e.opts.Logger.Warn("tokens are turned into text by llama-server: the vocabulary cannot be read here", "err", e.file.piecesErr)
	}
	if err := e.learn(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		e.disable(err.Error())
	}
	weights, err := e.file.weights()
	e.identity = block.Identity{Weights: weights, Layout: e.layout.Digest()}
	return err
}

// learn finds out what the server's K/V looks like, and how it computes.
func (e *Engine) learn(ctx context.Context) error {
	if e.opts.SlotsDir == "" {
		return errors.New("no slot directory is given")
	}
	if err := e.noAdapters(ctx); err != nil {
		return err
	}
	root, err := os.OpenRoot(e.opts.SlotsDir)
	if err != nil {
		return fmt.Errorf("slot directory: %w", err)
	}
	e.root = root
	e.sweep()
	shape, sum, err := e.settle(ctx, 0)
	if err != nil {
		return err
	}
	numerics := fmt.Sprintf("llama.cpp %s canary %x", e.server.Build, sum[:12])
	layout, err := shape.layout(e.opts.BlockTokens, numerics)
	if err != nil {
		return err
	}
	e.shape, e.layout, e.canarySum, e.cached = shape, layout, sum, true
	return nil
}

func (e *Engine) noAdapters(ctx context.Context) error {
	n, err := e.client.adapters(ctx)
	if err == nil && n > 0 {
		err = fmt.Errorf("it has %d adapters, whose scale can change at any time", n)
	}
	return err
}

// disable says, once, why nothing is cached from now on.
func (e *Engine) disable(why string) {
	if old := e.off.Swap(&why); old == nil || *old != why {
		e.opts.Logger.Warn("serving without a cache", "why", why)
	}
}

// Degraded says why nothing is cached at the moment, "" if all is well.
func (e *Engine) Degraded() string {
	if why := e.off.Load(); why != nil {
		return "llama-server: " + *why
	}
	return ""
}

// usable reports whether K/V may be exchanged with the server now.
func (e *Engine) usable() bool { return e.cached && e.off.Load() == nil }

// Layout implements [engine.Engine].
func (e *Engine) Layout() block.Layout { return e.layout }

// Identity implements [engine.Engine]. Weights is the sum of an [engine.Manifest] with the whole file as its one tensor.
func (e *Engine) Identity() block.Identity { return e.identity }

// Name implements [engine.Engine].
func (e *Engine) Name() string { return strings.TrimSuffix(filepath.Base(e.opts.Checkpoint), ".gguf") }

// Sequences implements [engine.Parallel]: one for each slot of the server.
func (e *Engine) Sequences() int { return int(e.pool.size) }

// ContextTokens implements [engine.Engine]: the context of one slot.
func (e *Engine) ContextTokens() int { return e.context }

// Tokenizer implements [engine.Engine].
func (e *Engine) Tokenizer() engine.Tokenizer { return e.tokenizer }

// ChatTemplate implements [engine.Templater]. A server whose model has none tells its own default.
func (e *Engine) ChatTemplate() engine.ChatTemplate { return e.template }

// NewSequence implements [engine.Engine]. It takes a slot when it is resumed or generates, and gives it back when it has generated or is
// closed.
func (e *Engine) NewSequence() (engine.Sequence, error) {
	if e.closed.Load() {
		return nil, fmt.Errorf("llamacpp: new sequence: %w", engine.ErrClosed)
	}
	return &sequence{engine: e}, nil
}

// Close implements [engine.Engine]. The server goes on running.
func (e *Engine) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	e.client.close()
	if e.root == nil {
		return nil
	}
	return e.root.Close()
}
