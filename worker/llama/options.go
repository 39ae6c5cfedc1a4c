package llama

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/kvtier/kvtier/block"
)

// Options say how a model is run. None of them changes what it computes; BlockTokens is part of the layout and therefore of
// the identity under which K/V is shared.
type Options struct {
	// BlockTokens is the number of tokens per block of K/V; 0 means 16.
	BlockTokens int
	// ContextTokens is the longest sequence, at most what the model was trained for; 0 means that.
	ContextTokens int
	// Threads is the most goroutines that compute at the same time, over all sequences of the model; 0 means GOMAXPROCS.
	Threads int
}

const (
	defaultBlockTokens = 16
	maxThreads         = 1024
)

func (o Options) withDefaults() Options {
	if o.BlockTokens == 0 {
		o.BlockTokens = defaultBlockTokens
	}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.BlockTokens < 1 || o.BlockTokens > block.MaxBlockTokens {
		errs = append(errs, fmt.Errorf("llama: options: BlockTokens is %d, want 1 to %d", o.BlockTokens, block.MaxBlockTokens))
	}
	if o.ContextTokens < 0 {
		errs = append(errs, fmt.Errorf("llama: options: ContextTokens is %d, want 0 or more", o.ContextTokens))
	}
	if o.Threads < 1 || o.Threads > maxThreads {
		errs = append(errs, fmt.Errorf("llama: options: Threads is %d, want 1 to %d", o.Threads, maxThreads))
	}
	return errors.Join(errs...)
}
