package llama

import (
	"crypto/sha256"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
)

// Identify says what the model at path would be, as Open would find out, without keeping it: tensors are digested,
// Options.Threads at a time. It reads all of it, always.
func Identify(path string, opts Options) (block.Identity, error) {
	src, err := openSource(path)
	if err != nil {
		return block.Identity{}, fmt.Errorf("llama: identify model %s: %w", path, err)
	}
	defer src.close()
	id, err := src.identify(opts)
	if err != nil {
		return id, fmt.Errorf("llama: identify model %s: %w", path, err)
	}
	return id, nil
}

// IdentifyReader is Identify for the GGUF file in the first size bytes of r, which is read by several goroutines at once.
func IdentifyReader(r io.ReaderAt, size int64, opts Options) (block.Identity, error) {
	src, err := ggufSource(r, size)
	if err != nil {
		return block.Identity{}, err
	}
	return src.identify(opts)
}

func (src *source) identify(opts Options) (block.Identity, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return block.Identity{}, err
	}
	digests := make([]block.Digest, len(src.tensors))
	var g errgroup.Group
	g.SetLimit(opts.Threads)
	for i, t := range src.tensors {
		g.Go(func() (err error) {
			digests[i], err = digestTensor(t)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return block.Identity{}, err
	}
	var m engine.Manifest
	src.hparams.describe(&m)
	for i, t := range src.tensors {
		m.Tensor(t.Name, t.DType.String(), t.Shape, digests[i])
	}
	sum, err := m.Sum()
	return block.Identity{Weights: sum, Layout: src.hparams.layout(opts.BlockTokens).Digest()}, err
}

// digestTensor hashes a tensor in pieces that stay in the second-level cache.
func digestTensor(t stored) (d block.Digest, err error) {
	sum := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{sum}, t.open(), make([]byte, 256<<10)); err != nil {
		return d, fmt.Errorf("read tensor %q: %w", t.Name, err)
	}
	sum.Sum(d[:0])
	return d, nil
}

// onlyWriter keeps io.CopyBuffer from looking for other methods than Write.
type onlyWriter struct{ io.Writer }
