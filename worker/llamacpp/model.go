package llamacpp

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

// modelFile is the file that the server should have loaded.
type modelFile struct {
	path      string
	size      int64
	modified  time.Time
	digest    block.Digest
	pieces    []string // nil with piecesErr
	piecesErr error
}

// metadataRoom is how much of a model file may be something else than tensors.
const metadataRoom = 512 << 20

func readModelFile(path string) (m modelFile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, fmt.Errorf("llamacpp: model file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return m, fmt.Errorf("llamacpp: model file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return m, fmt.Errorf("llamacpp: model file: %s is not a file: give the path of the .gguf file that llama-server has loaded", path)
	}
	m = modelFile{path: path, size: st.Size(), modified: st.ModTime()}
	sum := sha256.New()
	if n, err := io.CopyBuffer(struct{ io.Writer }{sum}, f, make([]byte, 1<<20)); err != nil || n != m.size {
		return m, fmt.Errorf("llamacpp: model file %s: read %d of %d bytes: %w", path, n, m.size, err)
	}
	sum.Sum(m.digest[:0])
	m.pieces, m.piecesErr = llama.Pieces(f, m.size)
	return m, nil
}

// weights names what is loaded: the digest of the whole file, since a server may use anything in it.
func (m modelFile) weights() (block.Digest, error) {
	var manifest engine.Manifest
	manifest.Tensor("file", "gguf", []int{int(m.size)}, m.digest)
	manifest.String("engine", "llama.cpp")
	return manifest.Sum()
}

// matches compares the file with what the server says that it has loaded, as far as that can be seen.
func (m modelFile) matches(path string, loaded modelInfo) error {
	if path != "" && filepath.Base(path) != filepath.Base(m.path) {
		return fmt.Errorf("llamacpp: llama-server has loaded %s, but the checkpoint is %s: give the file that it has loaded", path, m.path)
	}
	if loaded.Size > m.size || loaded.Size < m.size-metadataRoom {
		return fmt.Errorf("llamacpp: llama-server has loaded tensors of %d bytes, but %s has %d bytes: it is another file, or one of several that belong together, which is not supported", loaded.Size, m.path, m.size)
	}
	if m.pieces != nil && len(m.pieces) != loaded.Vocab {
		return fmt.Errorf("llamacpp: llama-server has a vocabulary of %d tokens, but that of %s has %d: give the file that it has loaded", loaded.Vocab, m.path, len(m.pieces))
	}
	return nil
}

// unchanged compares the file with what it was when it was digested.
func (m modelFile) unchanged() error {
	st, err := os.Stat(m.path)
	if err != nil {
		return err
	}
	if st.Size() != m.size || !st.ModTime().Equal(m.modified) {
		return fmt.Errorf("%s has changed since it was read: restart the worker", m.path)
	}
	return nil
}
