// Package safetensors reads the container format of Hugging Face checkpoints: the length of a header, the header, which is a JSON
// object of tensors, and their bytes. Files come from anywhere, so the reader keeps these invariants:
//
//   - no input makes it panic;
//   - it allocates at most a small multiple of the header, which is inside the file and has a limit;
//   - the tensors of a returned file fill the rest of it without a gap, and no two share a byte, as the format demands.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// ErrFormat means that the bytes are not a safetensors file that this package reads.
var ErrFormat = errors.New("not a usable safetensors file")

const (
	maxHeaderBytes = 100 << 20 // what the format allows
	maxDims        = 8
	metadataKey    = "__metadata__"
)

// elementBytes is the size of an element of the types that a model may be stored in; others are told from typing errors by their bytes.
var elementBytes = map[string]int64{
	"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
	"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}

// Tensor is one entry of the header.
type Tensor struct {
	Name   string
	DType  string // as the format calls it, such as "BF16"
	Shape  []int  // outermost dimension first, as in the file
	Offset int64  // of the first byte, from the start of the file
	Bytes  int64
}

// entry is a tensor in the header.
type entry struct {
	DType   string  `json:"dtype"`
	Shape   []int   `json:"shape"`
	Offsets []int64 `json:"data_offsets"`
}

// Parse reads the header of the file that r holds in its first size bytes. Tensors are in the order of their bytes. Errors wrap [ErrFormat], except those of r.
func Parse(r io.ReaderAt, size int64) ([]Tensor, error) {
	if size < 8 {
		return nil, fmt.Errorf("%w: it has %d bytes, less than the length of a header", ErrFormat, size)
	}
	var length [8]byte
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > uint64(min(maxHeaderBytes, size-8)) {
		return nil, fmt.Errorf("%w: it claims a header of %d bytes, more than the %d bytes behind it or the limit of %d: it is truncated, or something else",
			ErrFormat, n, size-8, maxHeaderBytes)
	}
	header := make([]byte, n)
	if _, err := r.ReadAt(header, 8); err != nil {
		return nil, err
	}
	tensors, err := parseHeader(header)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return tensors, place(tensors, 8+int64(n), size)
}

// parseHeader reads the object key by key, because a key that occurs twice must not win silently.
func parseHeader(header []byte) ([]Tensor, error) {
	d := json.NewDecoder(bytes.NewReader(header))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("its header is no JSON object")
	}
	var tensors []Tensor
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("its header: %w", err)
		}
		name, _ := t.(string)
		if seen[name] {
			return nil, fmt.Errorf("tensor %.100q occurs twice", name)
		}
		seen[name] = true
		if name == metadataKey {
			var ignored map[string]string
			if err := d.Decode(&ignored); err != nil {
				return nil, fmt.Errorf("its metadata: %w", err)
			}
			continue
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("tensor %.100q: %w", name, err)
		}
		x, err := e.tensor(name)
		if err != nil {
			return nil, fmt.Errorf("tensor %.100q: %w", name, err)
		}
		tensors = append(tensors, x)
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	if rest := bytes.Trim(header[d.InputOffset():], " "); len(rest) > 0 { // writers pad with spaces
		return nil, fmt.Errorf("%d bytes follow the object in its header", len(rest))
	}
	return tensors, nil
}

func (e entry) tensor(name string) (Tensor, error) {
	t := Tensor{Name: name, DType: e.DType, Shape: e.Shape}
	size, ok := elementBytes[e.DType]
	switch {
	case name == "":
		return t, errors.New("it has no name")
	case !ok:
		return t, fmt.Errorf("element type %.20q is unknown", e.DType)
	case len(e.Shape) > maxDims:
		return t, fmt.Errorf("it has %d dimensions, want at most %d", len(e.Shape), maxDims)
	case len(e.Offsets) != 2 || e.Offsets[0] < 0 || e.Offsets[1] < e.Offsets[0]:
		return t, fmt.Errorf("data_offsets are %v, want where it begins and where it ends", e.Offsets)
	}
	for _, n := range e.Shape {
		if n < 0 || n > math.MaxInt32 || n > 0 && size > math.MaxInt64/int64(n) {
			return t, fmt.Errorf("shape %v is impossible", e.Shape)
		}
		size *= int64(n)
	}
	t.Offset, t.Bytes = e.Offsets[0], e.Offsets[1]-e.Offsets[0]
	if t.Bytes != size {
		return t, fmt.Errorf("shape %v of %s takes %d bytes, but data_offsets say %d", e.Shape, e.DType, size, t.Bytes)
	}
	return t, nil
}

// place sorts tensors, checks that they fill the file from start on, and makes offsets those in the file.
func place(tensors []Tensor, start, size int64) error {
	slices.SortFunc(tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Bytes, b.Bytes))
	})
	end := int64(0)
	for i := range tensors {
		t := &tensors[i]
		if t.Offset != end {
			return fmt.Errorf("%w: tensor %.100q begins at byte %d of the data, want %d: tensors must follow each other", ErrFormat, t.Name, t.Offset, end)
		}
		if t.Bytes > size-start-end {
			return fmt.Errorf("%w: tensor %.100q ends at byte %d of the data, but the file has only %d: it is truncated", ErrFormat, t.Name, t.Offset+t.Bytes, size-start)
		}
		end += t.Bytes
		t.Offset += start
	}
	if end != size-start {
		return fmt.Errorf("%w: %d bytes follow the last tensor", ErrFormat, size-start-end)
	}
	return nil
}
