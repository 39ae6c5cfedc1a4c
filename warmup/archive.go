package warmup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
)

// An archive is a warm set in one file: what was stored, and for which weights.
//
//	"KVTWARM1"
//	le32 length, header (JSON)
//	(le32 length, frame)…      each as it stood in the store (package codec)
//	le32 0, le64 number of frames, SHA-256 of everything before
//
// It is written and read as a stream. Every frame has checksums of its own, and says what it is; the sum at the end finds what is missing.

// ErrArchive means that a file is no archive, or damaged.
var ErrArchive = errors.New("warmup: bad archive")

var archiveMagic = []byte("KVTWARM1")

// maxHeaderBytes bounds the header of an archive.
const maxHeaderBytes = 64 << 10

// ArchiveHeader says what an archive is of.
type ArchiveHeader struct {
	Model   string       `json:"model"`
	Label   string       `json:"label"`
	Weights block.Digest `json:"weights"`
	Layout  block.Layout `json:"layout"`
	// Root is the root of the default tenant's chains: equal only where the cluster secrets are.
	Root    string `json:"root"`
	Created int64  `json:"created"` // unix ms
}

// Identity returns the full digests.
func (h ArchiveHeader) Identity() block.Identity {
	return block.Identity{Weights: h.Weights, Layout: h.Layout.Digest()}
}

// ArchiveWriter writes an archive.
type ArchiveWriter struct {
	out io.Writer
	sum hash.Hash
	n   uint64
}

// NewArchiveWriter writes the header.
func NewArchiveWriter(w io.Writer, h ArchiveHeader) (*ArchiveWriter, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(b) > maxHeaderBytes {
		return nil, fmt.Errorf("%w: header of %d bytes", ErrArchive, len(b))
	}
	a := &ArchiveWriter{sum: sha256.New()}
	a.out = io.MultiWriter(w, a.sum)
	if _, err := a.out.Write(archiveMagic); err != nil {
		return nil, err
	}
	return a, a.piece(b)
}

func (a *ArchiveWriter) piece(b []byte) error {
	var n [4]byte
	binary.LittleEndian.PutUint32(n[:], uint32(len(b)))
	if _, err := a.out.Write(n[:]); err != nil {
		return err
	}
	_, err := a.out.Write(b)
	return err
}

// Add writes a frame.
func (a *ArchiveWriter) Add(frame []byte) error {
	if len(frame) == 0 || len(frame) > store.MaxValueBytes {
		return fmt.Errorf("%w: frame of %d bytes", ErrArchive, len(frame))
	}
	a.n++
	return a.piece(frame)
}

// Close writes the end. The archive is of no use without.
func (a *ArchiveWriter) Close() error {
	if err := a.piece(nil); err != nil {
		return err
	}
	if err := binary.Write(a.out, binary.LittleEndian, a.n); err != nil {
		return err
	}
	_, err := a.out.Write(a.sum.Sum(nil))
	return err
}

// ArchiveReader reads an archive.
type ArchiveReader struct {
	Header ArchiveHeader

	in    io.Reader // feeds sum
	plain io.Reader
	sum   hash.Hash
	n     uint64
	buf   []byte
}

// NewArchiveReader reads the header: ErrArchive if there is none, or one that makes no sense.
func NewArchiveReader(r io.Reader) (*ArchiveReader, error) {
	a := &ArchiveReader{plain: r, sum: sha256.New()}
	a.in = io.TeeReader(r, a.sum)
	magic := make([]byte, len(archiveMagic))
	if _, err := io.ReadFull(a.in, magic); err != nil || !bytes.Equal(magic, archiveMagic) {
		return nil, fmt.Errorf("%w: it does not begin like one", ErrArchive)
	}
	b, err := a.piece(maxHeaderBytes)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &a.Header); err != nil { // fields of later releases are passed over
		return nil, fmt.Errorf("%w: the header is not one: %s", ErrArchive, strings.TrimPrefix(err.Error(), "json: "))
	}
	if err := a.Header.Layout.Validate(); err != nil || a.Header.Weights.IsZero() {
		return nil, fmt.Errorf("%w: header: %w", ErrArchive, errors.Join(errors.New("weights or layout make no sense"), err))
	}
	return a, nil
}

// piece reads one length and as many bytes, into a buffer that is used again.
func (a *ArchiveReader) piece(most int) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(a.in, n[:]); err != nil {
		return nil, cut(err)
	}
	size := int(binary.LittleEndian.Uint32(n[:]))
	if size > most {
		return nil, fmt.Errorf("%w: a piece of %d bytes, at most %d", ErrArchive, size, most)
	}
	if cap(a.buf) < size {
		a.buf = make([]byte, size)
	}
	a.buf = a.buf[:size]
	if _, err := io.ReadFull(a.in, a.buf); err != nil {
		return nil, cut(err)
	}
	return a.buf, nil
}

// cut says what an end in the middle means.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", ErrArchive)
	}
	return err
}

// Next returns the next frame, which nobody has verified yet and which is valid until the next call; io.EOF after the last, if the archive is
// whole.
func (a *ArchiveReader) Next() ([]byte, error) {
	b, err := a.piece(store.MaxValueBytes)
	if err != nil {
		return nil, err
	}
	if len(b) > 0 {
		a.n++
		return b, nil
	}
	var n uint64
	if err := binary.Read(a.in, binary.LittleEndian, &n); err != nil {
		return nil, cut(err)
	}
	want := a.sum.Sum(nil)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(a.plain, got); err != nil {
		return nil, cut(err)
	}
	if n != a.n || !bytes.Equal(got, want) {
		return nil, fmt.Errorf("%w: checksum of the whole differs", ErrArchive)
	}
	if k, _ := io.ReadFull(a.plain, make([]byte, 1)); k > 0 {
		return nil, fmt.Errorf("%w: something follows its end", ErrArchive)
	}
	return nil, io.EOF
}
