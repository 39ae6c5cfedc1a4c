package llama

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// source is a model before its weights are loaded: everything that its files say, and where its tensors are.
type source struct {
	hparams   hparams // without vocab, which is the tokenizer's
	tensors   []stored
	names     naming
	tokenizer func() (*tokenizer, error)
	// halfTurned says that rope turns the first half of a head's dimensions together with its second.
	halfTurned bool
	files      []io.Closer
}

// stored is a tensor in its file, its shape innermost dimension first.
type stored struct {
	gguf.Tensor
	r io.ReaderAt
}

func (s stored) open() io.Reader { return io.NewSectionReader(s.r, s.Offset, s.Bytes) }

// naming is what a format calls the tensors of the architecture. layer takes the short names of GGUF.
type naming struct {
	embed, norm, output string
	layer               func(i int, short string) string
}

var ggufNames = naming{
	embed: "token_embd.weight", norm: "output_norm.weight", output: "output.weight",
	layer: func(i int, short string) string { return fmt.Sprintf("blk.%d.%s.weight", i, short) },
}

// close closes what openSource has opened.
func (src *source) close() {
	for _, f := range src.files {
		_ = f.Close() // only read from
	}
}

// isCheckpoint says whether path names a Hugging Face checkpoint, not a GGUF file.
func isCheckpoint(path string) bool {
	if strings.HasSuffix(path, safetensorsSuffix) {
		return true
	}
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// openSource finds out what is at path. The caller closes what it returns.
func openSource(path string) (*source, error) {
	if isCheckpoint(path) {
		if strings.HasSuffix(path, safetensorsSuffix) {
			return checkpointSource(filepath.Dir(path), filepath.Base(path))
		}
		return checkpointSource(path, "")
	}
	f, st, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	src, err := ggufSource(f, st.Size())
	if err != nil {
		f.Close()
		return nil, err
	}
	src.files = append(src.files, f)
	return src, nil
}

// openRegular refuses what is no file, before it could block.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if st, err = f.Stat(); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

func ggufSource(r io.ReaderAt, size int64) (*source, error) {
	f, err := gguf.Parse(r, size)
	if err != nil {
		return nil, err
	}
	h, err := readHparams(f.Metadata)
	if err != nil {
		return nil, err
	}
	src := &source{hparams: h, names: ggufNames, tokenizer: func() (*tokenizer, error) { return ggufTokenizer(f.Metadata) }}
	for _, t := range f.Tensors {
		src.tensors = append(src.tensors, stored{t, r})
	}
	return src, nil
}
