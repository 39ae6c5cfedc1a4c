// Package gguf reads the container format of model files: metadata and the table of tensors, versions 2 and 3,
// little-endian. Tensor bytes stay in the file until somebody reads them.
//
// Files come from anywhere, so the reader keeps these invariants:
//
//   - no input makes it panic;
//   - it allocates at most a small multiple of the file's size: every count is checked against the bytes that are left
//     before anything is allocated for it;
//   - every tensor of a returned file lies inside the file, and no two tensors share a byte, so that reading all of them
//     costs no more than the file holds.
package gguf

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Errors that callers tell apart.
var (
	// ErrFormat means that the bytes are not a GGUF file that this package reads.
	ErrFormat = errors.New("not a usable GGUF file")
	// ErrMissing means that a metadata key is not there.
	ErrMissing = errors.New("metadata key is missing")
)

const (
	magic            = "GGUF"
	defaultAlignment = 32
	maxDims          = 4
	maxNameBytes     = 4096
)

// DType is the element type of a tensor, numbered as in the file.
type DType uint32

// Element types that can be read. How the bytes of a block are laid out stands beside the code that widens them.
const (
	F32  DType = 0
	F16  DType = 1
	Q4_0 DType = 2
	Q4_1 DType = 3
	Q5_0 DType = 6
	Q5_1 DType = 7
	Q8_0 DType = 8
	Q4_K DType = 12
	Q5_K DType = 13
	Q6_K DType = 14
	BF16 DType = 30
)

// Readable lists the element types that can be read, for people.
const Readable = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K"

// dtypeNames also knows the types that are refused, so that the error can name them.
var dtypeNames = map[DType]string{
	F32: "F32", F16: "F16", Q4_0: "Q4_0", Q4_1: "Q4_1", Q5_0: "Q5_0", Q5_1: "Q5_1", Q8_0: "Q8_0", 9: "Q8_1", 10: "Q2_K",
	11: "Q3_K", Q4_K: "Q4_K", Q5_K: "Q5_K", Q6_K: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
	20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", BF16: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

func (d DType) String() string {
	if s, ok := dtypeNames[d]; ok {
		return s
	}
	return fmt.Sprintf("type %d", uint32(d))
}

// Block is how many elements of d are stored together in how many bytes; 0, 0 for a type that cannot be read.
func (d DType) Block() (elements, bytes int) {
	switch d {
	case F32:
		return 1, 4
	case F16, BF16:
		return 1, 2
	case Q4_0:
		return 32, 18
	case Q4_1:
		return 32, 20
	case Q5_0:
		return 32, 22
	case Q5_1:
		return 32, 24
	case Q8_0:
		return 32, 34
	case Q4_K:
		return 256, 144
	case Q5_K:
		return 256, 176
	case Q6_K:
		return 256, 210
	}
	return 0, 0
}

// Tensor is one entry of the table of tensors.
type Tensor struct {
	Name   string
	DType  DType
	Shape  []int // innermost dimension first, as in the file
	Offset int64 // of the first byte, from the start of the file
	Bytes  int64
}

// Elements is the product of the shape.
func (t Tensor) Elements() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// File is a parsed header over the reader it came from. It is immutable and safe for concurrent use if the reader is.
type File struct {
	Version  uint32
	Metadata Metadata
	Tensors  []Tensor // as in the file
	r        io.ReaderAt
}

// Open returns a reader over the bytes of t.
func (f *File) Open(t Tensor) *io.SectionReader { return io.NewSectionReader(f.r, t.Offset, t.Bytes) }

// Parse reads the header of the file that r holds in its first size bytes. Errors wrap [ErrFormat], except those of r.
func Parse(r io.ReaderAt, size int64) (*File, error) {
	d := newDecoder(r, size)
	if got := d.bytes(len(magic)); d.err == nil && string(got) != magic {
		d.fail("it starts with %q, want %q", got, magic)
	}
	version := d.u32()
	if d.err == nil && (version < 2 || version > 3) {
		d.fail("GGUF version %d is not supported, want 2 or 3 (little-endian)", version)
	}
	const minTensorBytes = 8 + 1 + 4 + 8 + 4 + 8 // name of one byte, one dimension
	const minPairBytes = 8 + 1 + 4 + 1
	tensorCount := d.count("tensors", minTensorBytes)
	pairCount := d.count("metadata pairs", minPairBytes)
	f := &File{Version: version, r: r, Metadata: d.metadata(pairCount)}
	for i := 0; i < tensorCount && d.err == nil; i++ {
		f.Tensors = append(f.Tensors, d.tensor(i))
	}
	if d.err != nil {
		return nil, d.err
	}
	if err := f.place(d.pos, size); err != nil {
		return nil, err
	}
	return f, nil
}

// place turns offsets from the start of the data section into offsets from the start of the file, and checks that tensors
// are inside the file and apart from each other.
func (f *File) place(headerEnd, size int64) error {
	align := int64(defaultAlignment)
	if _, ok := f.Metadata["general.alignment"]; ok {
		n, err := f.Metadata.Uint("general.alignment", 1<<20)
		if err != nil {
			return err
		}
		if n < 1 || n&(n-1) != 0 {
			return fmt.Errorf("%w: general.alignment is %d, want a power of two", ErrFormat, n)
		}
		align = int64(n)
	}
	start := (headerEnd + align - 1) / align * align
	seen := make(map[string]bool, len(f.Tensors))
	for i := range f.Tensors {
		t := &f.Tensors[i]
		if seen[t.Name] {
			return fmt.Errorf("%w: tensor %q occurs twice", ErrFormat, t.Name)
		}
		seen[t.Name] = true
		if t.Offset%align != 0 {
			return fmt.Errorf("%w: tensor %q starts at %d, not a multiple of the alignment %d", ErrFormat, t.Name, t.Offset, align)
		}
		if t.Offset > size-start || t.Bytes > size-start-t.Offset {
			return fmt.Errorf("%w: tensor %q needs bytes %d to %d of the data, but the file has only %d: it is truncated",
				ErrFormat, t.Name, t.Offset, t.Offset+t.Bytes, max(0, size-start))
		}
		t.Offset += start
	}
	byOffset := slices.Clone(f.Tensors)
	slices.SortFunc(byOffset, func(a, b Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(byOffset); i++ {
		if a, b := byOffset[i-1], byOffset[i]; a.Offset+a.Bytes > b.Offset {
			return fmt.Errorf("%w: tensors %q and %q overlap", ErrFormat, a.Name, b.Name)
		}
	}
	return nil
}

// tensor reads one entry of the table. Its offset is still relative to the data section.
func (d *decoder) tensor(i int) Tensor {
	t := Tensor{Name: d.string(maxNameBytes)}
	if d.err != nil {
		return t
	}
	if t.Name == "" {
		d.fail("tensor %d has no name", i)
		return t
	}
	dims := d.u32()
	if d.err == nil && (dims < 1 || dims > maxDims) {
		d.fail("tensor %q has %d dimensions, want 1 to %d", t.Name, dims, maxDims)
	}
	elements := uint64(1)
	for j := 0; j < int(dims) && d.err == nil; j++ {
		n := d.u64()
		if d.err == nil && (n == 0 || n > math.MaxInt32 || elements > 2*uint64(d.size)/n) { // every type takes half a byte or more
			d.fail("tensor %q: dimension %d is %d, which cannot fit a file of %d bytes", t.Name, j, n, d.size)
			return t
		}
		elements *= n
		t.Shape = append(t.Shape, int(n))
	}
	t.DType = DType(d.u32())
	offset := d.u64()
	if d.err != nil {
		return t
	}
	perBlock, blockBytes := t.DType.Block()
	switch {
	case perBlock == 0:
		d.fail("tensor %q has element type %v, want %s: convert the model to one of them", t.Name, t.DType, Readable)
	case t.Shape[0]%perBlock != 0:
		d.fail("tensor %q: rows of %d elements are no multiple of the %d that %v stores together", t.Name, t.Shape[0], perBlock, t.DType)
	case offset > uint64(d.size):
		d.fail("tensor %q starts at %d, past the end of the file (%d bytes): it is truncated", t.Name, offset, d.size)
	default:
		t.Offset, t.Bytes = int64(offset), int64(elements/uint64(perBlock))*int64(blockBytes)
	}
	return t
}
