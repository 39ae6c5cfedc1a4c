package llama

import (
	"fmt"
	"io"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// defaultParallelFLOPs is about 20 µs of one core.
const defaultParallelFLOPs = 1 << 20

// Open loads the model at path: a GGUF file, or a Hugging Face checkpoint, which is a directory with config.json, tokenizer.json and
// .safetensors files, named by itself or by its only .safetensors file. Every file is read once and closed. Errors name the file and what is wrong.
func Open(path string, opts Options) (*Model, error) {
	src, err := openSource(path)
	if err != nil {
		return nil, fmt.Errorf("llama: open model %s: %w", path, err)
	}
	defer src.close()
	return openModel(src, path, opts)
}

// OpenReader loads the model whose GGUF file r holds in its first size bytes. name stands for it in errors, and for its name if it states
// none itself. r is not used after OpenReader returns; it is read by up to Options.Threads goroutines at once.
func OpenReader(r io.ReaderAt, size int64, name string, opts Options) (*Model, error) {
	src, err := ggufSource(r, size)
	if err != nil {
		return nil, fmt.Errorf("llama: open model %s: %w", name, err)
	}
	return openModel(src, name, opts)
}

func openModel(src *source, name string, opts Options) (*Model, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	m, err := load(src, opts)
	if err != nil {
		return nil, fmt.Errorf("llama: open model %s: %w", name, err)
	}
	if m.hparams.name == "" {
		m.hparams.name = name
	}
	return m, nil
}

func load(src *source, opts Options) (*Model, error) {
	h := src.hparams
	tok, err := src.tokenizer()
	if err != nil {
		return nil, err
	}
	h.vocab = tok.Vocab()
	layout := h.layout(opts.BlockTokens)
	if err := layout.Validate(); err != nil {
		return nil, err
	}
	if opts.ContextTokens > h.context {
		return nil, fmt.Errorf("options ask for a context of %d tokens, but the model was trained for %d", opts.ContextTokens, h.context)
	}
	w, sum, err := loadWeights(src, &h, opts.Threads)
	if err != nil {
		return nil, err
	}
	m := &Model{
		hparams: h, weights: w, tokenizer: tok, layout: layout,
		rope:     kernel.NewRope(h.ropeDims, float64(h.ropeBase), float64(h.ropeScale)),
		identity: block.Identity{Weights: sum, Layout: layout.Digest()},
		context:  h.context, threads: opts.Threads, crew: newCrew(opts.Threads),
		parallelFLOPs: defaultParallelFLOPs,
	}
	if opts.ContextTokens > 0 {
		m.context = opts.ContextTokens
	}
	return m, nil
}
