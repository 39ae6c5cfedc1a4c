package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/quant"
)

// The shipped checkpoints; the second is the better one and is served by default.
const (
	shippedV1 = "shakespeare-3m-v1"
	shippedV2 = "shakespeare-3m-v2"
)

func shippedCheckpoints(o llama.Options) []checkpoint {
	return []checkpoint{shipped(shippedV2, o), shipped(shippedV1, o)}
}

func shipped(label string, o llama.Options) checkpoint {
	return checkpoint{label: label, open: func(context.Context) (engine.Engine, error) {
		name := label + ".gguf"
		b, err := fs.ReadFile(models.FS, name)
		if err != nil {
			return nil, fmt.Errorf("shipped model: %w", err)
		}
		return llama.OpenReader(bytes.NewReader(b), int64(len(b)), name, o)
	}}
}

func fileCheckpoints(paths []string, o llama.Options) (all []checkpoint) {
	for _, path := range paths {
		all = append(all, checkpoint{
			label: labelOf(path), path: path,
			open:     func(context.Context) (engine.Engine, error) { return llama.Open(path, o) },
			identify: func() (block.Identity, bool, error) { return llama.IdentifyNoted(path, o) },
			recheck:  func() (block.Identity, error) { return llama.Identify(path, o) },
		})
	}
	return all
}

// quantised are the same checkpoints with K/V cached as q says: engines and identities of another layout.
func quantised(exact []checkpoint, q block.Quant) (all []checkpoint) {
	if q == block.QuantNone {
		return exact
	}
	for _, c := range exact {
		open, identify, recheck := c.open, c.identify, c.recheck
		c.open = func(ctx context.Context) (engine.Engine, error) {
			e, err := open(ctx)
			if err != nil {
				return nil, err
			}
			w, err := quant.Wrap(e, q)
			if err != nil {
				return nil, errors.Join(err, e.Close())
			}
			return w, nil
		}
		if identify != nil {
			c.identify = func() (block.Identity, bool, error) {
				id, noted, err := identify()
				return quant.Identity(id, q), noted, err
			}
		}
		if recheck != nil {
			c.recheck = func() (block.Identity, error) {
				id, err := recheck()
				return quant.Identity(id, q), err
			}
		}
		all = append(all, c)
	}
	return all
}
