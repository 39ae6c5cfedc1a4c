package warmup

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// scratch is a file of a job's own: in memory while it is small, so that small jobs need no disk to write to, then on disk.
type scratch struct {
	dir  string
	keep int // bytes to keep in memory
	mem  []byte
	disk *os.File
}

var (
	_ io.WriteCloser = (*scratch)(nil)
	_ io.ReaderAt    = (*scratch)(nil)
)

// Write appends.
func (s *scratch) Write(b []byte) (int, error) {
	if s.disk == nil && len(s.mem)+len(b) <= s.keep {
		s.mem = append(s.mem, b...)
		return len(b), nil
	}
	if s.disk == nil {
		f, err := scratchFile(s.dir)
		if err != nil {
			return 0, err
		}
		s.disk = f
		if _, err := f.Write(s.mem); err != nil {
			return 0, err
		}
		s.mem = nil
	}
	return s.disk.Write(b)
}

// ReadAt implements io.ReaderAt.
func (s *scratch) ReadAt(b []byte, off int64) (int, error) {
	if s.disk != nil {
		return s.disk.ReadAt(b, off)
	}
	return bytes.NewReader(s.mem).ReadAt(b, off)
}

// Close gives everything back.
func (s *scratch) Close() error {
	s.mem = nil
	if s.disk == nil {
		return nil
	}
	return s.disk.Close()
}

// scratchFile is a file on disk that is gone when it is closed.
func scratchFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "kvtier-warmup-*.run")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
