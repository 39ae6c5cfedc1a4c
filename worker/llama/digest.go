package llama

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// Identify says what the model in the file at path would be, as Open would find out, without keeping it: tensors are digested,
// Options.Threads at a time. It reads the whole file, always.
func Identify(path string, opts Options) (block.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return block.Identity{}, fmt.Errorf("llama: identify model: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return block.Identity{}, fmt.Errorf("llama: identify model: %w", err)
	}
	id, err := IdentifyReader(f, st.Size(), opts)
	if err != nil {
		return id, fmt.Errorf("llama: identify model %s: %w", path, err)
	}
	return id, nil
}

// IdentifyReader is Identify for the first size bytes of r, which is read by several goroutines at once.
func IdentifyReader(r io.ReaderAt, size int64, opts Options) (block.Identity, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return block.Identity{}, err
	}
	f, h, err := readHeader(r, size)
	if err != nil {
		return block.Identity{}, err
	}
	digests := make([]block.Digest, len(f.Tensors))
	var g errgroup.Group
	g.SetLimit(opts.Threads)
	for i, t := range f.Tensors {
		g.Go(func() (err error) {
			digests[i], err = digestTensor(f, t)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return block.Identity{}, err
	}
	var m engine.Manifest
	h.describe(&m)
	for i, t := range f.Tensors {
		m.Tensor(t.Name, t.DType.String(), t.Shape, digests[i])
	}
	sum, err := m.Sum()
	return block.Identity{Weights: sum, Layout: h.layout(opts.BlockTokens).Digest()}, err
}

func readHeader(r io.ReaderAt, size int64) (*gguf.File, hparams, error) {
	f, err := gguf.Parse(r, size)
	if err != nil {
		return nil, hparams{}, err
	}
	h, err := readHparams(f.Metadata)
	return f, h, err
}

// digestTensor hashes a tensor in pieces that stay in the second-level cache.
func digestTensor(f *gguf.File, t gguf.Tensor) (d block.Digest, err error) {
	sum := sha256.New()
	if _, err := io.CopyBuffer(onlyWriter{sum}, f.Open(t), make([]byte, 256<<10)); err != nil {
		return d, fmt.Errorf("read tensor %q: %w", t.Name, err)
	}
	sum.Sum(d[:0])
	return d, nil
}

// onlyWriter keeps io.CopyBuffer from looking for other methods than Write.
type onlyWriter struct{ io.Writer }
