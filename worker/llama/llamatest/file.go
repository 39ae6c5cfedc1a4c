// Package llamatest writes model files for tests: small ones with random weights that work, and crooked ones that must be
// refused. It does not import the engine, so that the engine's own tests can use it.
package llamatest

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Pair is one entry of a file's metadata. Value is a uint32, uint64, int32, float32, bool, string, []string, []float32 or
// []int32, or [Raw].
type Pair struct {
	Key   string
	Value any
}

// Raw is a value written as it is: its type number and its bytes.
type Raw struct {
	Type uint32
	Data []byte
}

// Tensor is one tensor of a file. Shape has the innermost dimension first.
type Tensor struct {
	Name  string
	Type  uint32 // as in GGUF: 0 F32, 1 F16, 2 Q4_0, 8 Q8_0, 12 Q4_K, 30 BF16, and others that Encode knows
	Shape []int
	Data  []byte // as stored
	// Values are the elements that Data stands for.
	Values []float32
}

// File is a GGUF file to be. Tests change what they want to be wrong before they call Bytes.
type File struct {
	Magic    string // "" means GGUF
	Version  uint32 // 0 means 3
	Metadata []Pair
	Tensors  []Tensor
	// TensorCount and PairCount replace the true counts if they are not 0.
	TensorCount, PairCount uint64
	// Offset changes where the table says that a tensor is, if it is not nil.
	Offset func(t Tensor, offset uint64) uint64
}

const alignment = 32

// Set replaces or adds a metadata pair.
func (f *File) Set(key string, value any) {
	for i := range f.Metadata {
		if f.Metadata[i].Key == key {
			f.Metadata[i].Value = value
			return
		}
	}
	f.Metadata = append(f.Metadata, Pair{key, value})
}

// Unset removes a metadata pair.
func (f *File) Unset(key string) {
	for i := range f.Metadata {
		if f.Metadata[i].Key == key {
			f.Metadata = append(f.Metadata[:i:i], f.Metadata[i+1:]...)
			return
		}
	}
}

// Tensor returns the tensor of that name, nil if there is none.
func (f *File) Tensor(name string) *Tensor {
	for i := range f.Tensors {
		if f.Tensors[i].Name == name {
			return &f.Tensors[i]
		}
	}
	return nil
}

// Bytes encodes the file.
func (f *File) Bytes() []byte {
	le := binary.LittleEndian
	magic, version := f.Magic, f.Version
	if magic == "" {
		magic = "GGUF"
	}
	if version == 0 {
		version = 3
	}
	tensors, pairs := uint64(len(f.Tensors)), uint64(len(f.Metadata))
	if f.TensorCount != 0 {
		tensors = f.TensorCount
	}
	if f.PairCount != 0 {
		pairs = f.PairCount
	}
	b := append([]byte(nil), magic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint64(b, tensors)
	b = le.AppendUint64(b, pairs)
	for _, p := range f.Metadata {
		b = appendString(b, p.Key)
		b = appendValue(b, p.Value)
	}
	offset := uint64(0)
	for _, t := range f.Tensors {
		b = appendString(b, t.Name)
		b = le.AppendUint32(b, uint32(len(t.Shape)))
		for _, d := range t.Shape {
			b = le.AppendUint64(b, uint64(d))
		}
		b = le.AppendUint32(b, t.Type)
		at := offset
		if f.Offset != nil {
			at = f.Offset(t, offset)
		}
		b = le.AppendUint64(b, at)
		offset += uint64(len(t.Data)+alignment-1) / alignment * alignment
	}
	for _, t := range f.Tensors {
		b = pad(b)
		b = append(b, t.Data...)
	}
	return b
}

func pad(b []byte) []byte {
	for len(b)%alignment != 0 {
		b = append(b, 0)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func appendValue(b []byte, value any) []byte {
	le := binary.LittleEndian
	switch v := value.(type) {
	case uint32:
		return le.AppendUint32(le.AppendUint32(b, 4), v)
	case int32:
		return le.AppendUint32(le.AppendUint32(b, 5), uint32(v))
	case float32:
		return le.AppendUint32(le.AppendUint32(b, 6), math.Float32bits(v))
	case bool:
		b = le.AppendUint32(b, 7)
		if v {
			return append(b, 1)
		}
		return append(b, 0)
	case string:
		return appendString(le.AppendUint32(b, 8), v)
	case uint64:
		return le.AppendUint64(le.AppendUint32(b, 10), v)
	case []string:
		b = appendArray(b, 8, len(v))
		for _, s := range v {
			b = appendString(b, s)
		}
		return b
	case []float32:
		b = appendArray(b, 6, len(v))
		for _, x := range v {
			b = le.AppendUint32(b, math.Float32bits(x))
		}
		return b
	case []int32:
		b = appendArray(b, 5, len(v))
		for _, x := range v {
			b = le.AppendUint32(b, uint32(x))
		}
		return b
	case Raw:
		return append(le.AppendUint32(b, v.Type), v.Data...)
	}
	panic(fmt.Sprintf("llamatest: metadata value of type %T", value))
}

func appendArray(b []byte, element uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, 9)
	b = binary.LittleEndian.AppendUint32(b, element)
	return binary.LittleEndian.AppendUint64(b, uint64(n))
}
