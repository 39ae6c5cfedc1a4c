package main

import (
	"errors"
	"io"
)

// sink is a buffer of the caller's that rueidis can read a reply into without a copy.
type sink struct {
	buf []byte
	n   int
}

var _ io.ReaderFrom = (*sink)(nil)

var errFull = errors.New("reply larger than the buffer")

func (s *sink) Write(p []byte) (int, error) {
	n := copy(s.buf[s.n:], p)
	s.n += n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

// ReadFrom reads until r ends.
func (s *sink) ReadFrom(r io.Reader) (int64, error) {
	from := s.n
	for {
		if s.n == len(s.buf) {
			return int64(s.n - from), errFull
		}
		n, err := r.Read(s.buf[s.n:])
		s.n += n
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return int64(s.n - from), err
		}
	}
}
