package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

// loader finds the checkpoints that clients may name: those given by --checkpoint, and .gguf files directly in --checkpoint-dir.
type loader struct {
	given []checkpoint
	dir   string // "" for none
	opts  llama.Options
	quant block.Quant
}

// find returns the checkpoint of a name that came over the network. Nothing outside of what the operator named can be reached:
// the name is one path element, and the directory is a root that symbolic links do not leave.
func (l loader) find(name string) (checkpoint, error) {
	for _, c := range l.given {
		if name == c.label || c.path != "" && name == filepath.Base(c.path) {
			return c, nil
		}
	}
	if l.dir == "" || len(name) > 255 || !filepath.IsLocal(name) || filepath.Base(name) != name || strings.ContainsAny(name, "/\\\x00") || !strings.HasSuffix(name, ".gguf") {
		return checkpoint{}, fmt.Errorf("%w: %.100q is neither a --checkpoint nor a .gguf file in --checkpoint-dir", worker.ErrCheckpoint, name)
	}
	c := checkpoint{label: labelOf(name), open: func(context.Context) (engine.Engine, error) {
		root, err := os.OpenRoot(l.dir)
		if err != nil {
			return nil, fmt.Errorf("checkpoint directory: %w", err)
		}
		defer root.Close()
		f, err := root.Open(name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = worker.ErrCheckpoint
			}
			return nil, fmt.Errorf("checkpoint %.100q: %w", name, err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			return nil, fmt.Errorf("%w: %.100q is no file", worker.ErrCheckpoint, name)
		}
		return llama.OpenReader(f, st.Size(), name, l.opts)
	}}
	if err := coordinator.ValidateLabel(c.label); err != nil {
		return c, fmt.Errorf("%w: %w", worker.ErrCheckpoint, err)
	}
	return quantised([]checkpoint{c}, l.quant)[0], nil
}

// load answers POST /v1/weights. A worker on its own swaps. With a coordinator the checkpoint becomes one that this worker can load and
// that the coordinator knows; it is served when it is activated, by every worker that has it: one authority, not two.
func (n *node) load(ctx context.Context, l loader, o nodeOptions, name string) (worker.Loaded, error) {
	c, err := l.find(name)
	if err != nil {
		return worker.Loaded{}, err
	}
	e, err := c.open(ctx)
	if err != nil {
		return worker.Loaded{}, err
	}
	id := e.Identity()
	loaded := worker.Loaded{Label: c.label, Weights: id.Weights.String(), Variant: id.Variant().String()}
	if o.coordinator == nil {
		if err := n.replica.SwapWeights(ctx, c.label, func(context.Context) (engine.Engine, error) { return e, nil }); err != nil {
			return worker.Loaded{}, err
		}
		loaded.Resident = true
		return loaded, nil
	}
	resident, _ := n.replica.Resident()
	if err := e.Close(); err != nil {
		return worker.Loaded{}, err
	}
	if id.Layout != resident.Identity().Layout {
		return worker.Loaded{}, fmt.Errorf("%w: %s", worker.ErrShape, c.label)
	}
	n.replica.Offer(worker.Checkpoint{Label: c.label, Identity: id, Open: c.open}.Verified())
	res, err := o.coordinator.Register(ctx, o.model, id, c.label)
	if err != nil {
		return worker.Loaded{}, fmt.Errorf("register %s: %w", c.label, err)
	}
	if res.Version != nil {
		loaded.State = string(res.Version.State)
	}
	now, _ := n.replica.Resident()
	loaded.Resident = now.Identity() == id
	return loaded, nil
}

// recheck reads every file whose digest came from a note. One that lied is forgotten, and what the file really holds is announced; the
// checkpoint that was announced cannot be loaded, because loading compares.
func (n *node) recheck(ctx context.Context, o nodeOptions, all []worker.Checkpoint) {
	for i, c := range o.checkpoints {
		if i == 0 || c.recheck == nil || ctx.Err() != nil {
			continue
		}
		id, err := c.recheck()
		switch {
		case err != nil:
			o.logger.Error("checkpoint cannot be read any more", "label", c.label, "err", err)
		case id != all[i].Identity:
			o.logger.Error("checkpoint is not what its note says", "label", c.label, "noted", all[i].Identity.Weights.Short(), "is", id.Weights.Short())
			llama.ForgetNote(c.path)
			actual := worker.Checkpoint{Label: c.label, Identity: id, Open: c.open}.Verified()
			n.replica.Offer(actual)
			register(ctx, o, []worker.Checkpoint{actual})
		}
	}
}
