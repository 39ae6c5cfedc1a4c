package engine

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kvtier/kvtier/block"
)

// Manifest collects what a model computes with, to name its weights: every tensor, and every number outside the tensors that
// changes the result. Two manifests have equal sums only if all of it is equal; the order in which it was added, the file it
// came from and everything else about the file play no part. The zero Manifest is ready to use; it is not safe for
// concurrent use. All engines must use it, so that the digest means the same everywhere.
type Manifest struct {
	tensors []manifestTensor
	params  []manifestParam
}

type manifestTensor struct {
	name, dtype string
	shape       []int
	digest      block.Digest
}

type manifestParam struct {
	name  string
	kind  byte // 'u', 'f' or 's'
	value []byte
}

// Tensor adds a tensor: its name and element type as the format calls them, its shape, innermost dimension first, and the
// SHA-256 of its bytes as stored. It keeps no reference to shape.
func (m *Manifest) Tensor(name, dtype string, shape []int, digest block.Digest) {
	m.tensors = append(m.tensors, manifestTensor{name: name, dtype: dtype, shape: slices.Clone(shape), digest: digest})
}

// Uint adds a whole number that the model computes with.
func (m *Manifest) Uint(name string, v uint64) {
	m.params = append(m.params, manifestParam{name, 'u', binary.LittleEndian.AppendUint64(nil, v)})
}

// Float adds a real number that the model computes with, by its bits.
func (m *Manifest) Float(name string, v float64) {
	m.params = append(m.params, manifestParam{name, 'f', binary.LittleEndian.AppendUint64(nil, math.Float64bits(v))})
}

// String adds a choice that has a name, like an activation function.
func (m *Manifest) String(name, v string) {
	m.params = append(m.params, manifestParam{name, 's', []byte(v)})
}

// Sum is the SHA-256 of the canonical encoding: a domain prefix, then le64 count and the tensors sorted by name, then le64
// count and the parameters sorted by name. Strings stand behind their le64 length, dimensions behind their le64 count, so
// that no two manifests have the same encoding. A name that was added twice is an error, and so is an empty manifest.
func (m *Manifest) Sum() (block.Digest, error) {
	if len(m.tensors) == 0 {
		return block.Digest{}, errors.New("engine: manifest: no tensors: it would identify nothing")
	}
	tensors, params := slices.Clone(m.tensors), slices.Clone(m.params)
	slices.SortFunc(tensors, func(a, b manifestTensor) int { return cmp.Compare(a.name, b.name) })
	slices.SortFunc(params, func(a, b manifestParam) int { return cmp.Compare(a.name, b.name) })

	h := sha256.New()
	var buf []byte
	text := func(s string) {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(len(s)))
		buf = append(buf, s...)
	}
	number := func(n int) { buf = binary.LittleEndian.AppendUint64(buf, uint64(n)) }

	buf = append(buf, "kvtier/weights/1\x00"...)
	number(len(tensors))
	for i, t := range tensors {
		if i > 0 && t.name == tensors[i-1].name {
			return block.Digest{}, fmt.Errorf("engine: manifest: tensor %q was added twice", t.name)
		}
		text(t.name)
		text(t.dtype)
		number(len(t.shape))
		for _, d := range t.shape {
			number(d)
		}
		buf = append(buf, t.digest[:]...)
		h.Write(buf)
		buf = buf[:0]
	}
	number(len(params))
	for i, p := range params {
		if i > 0 && p.name == params[i-1].name {
			return block.Digest{}, fmt.Errorf("engine: manifest: parameter %q was added twice", p.name)
		}
		text(p.name)
		buf = append(buf, p.kind)
		text(string(p.value))
	}
	h.Write(buf)
	var sum block.Digest
	h.Sum(sum[:0])
	return sum, nil
}
