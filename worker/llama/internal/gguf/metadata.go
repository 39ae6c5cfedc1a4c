package gguf

import (
	"fmt"
	"math"
)

// Metadata maps keys to values: uint64, int64, float64, bool, string, or a slice of one of these.
type Metadata map[string]any

const maxStringBytes = 1 << 20

// Value types, numbered as in the file.
const (
	typeU8 uint32 = iota
	typeI8
	typeU16
	typeI16
	typeU32
	typeI32
	typeF32
	typeBool
	typeString
	typeArray
	typeU64
	typeI64
	typeF64
)

// minValueBytes is the least that a value of a type takes, 0 for types that cannot stand in an array.
var minValueBytes = [...]int64{1, 1, 2, 2, 4, 4, 4, 1, 8, 0, 8, 8, 8}

func (d *decoder) metadata(pairs int) Metadata {
	m := make(Metadata)
	for range pairs {
		key := d.string(maxNameBytes)
		typ := d.u32()
		if d.err != nil {
			return nil
		}
		if _, ok := m[key]; ok {
			d.fail("metadata key %q occurs twice", key)
			return nil
		}
		m[key] = d.value(key, typ)
	}
	return m
}

func (d *decoder) value(key string, typ uint32) any {
	switch typ {
	case typeU8, typeU16, typeU32, typeU64:
		return d.uint(typ)
	case typeI8, typeI16, typeI32, typeI64:
		return d.int(typ)
	case typeF32, typeF64:
		return d.float(typ)
	case typeBool:
		return d.u8() != 0
	case typeString:
		return d.string(maxStringBytes)
	case typeArray:
		return d.array(key)
	}
	d.fail("metadata key %q has unknown value type %d", key, typ)
	return nil
}

func (d *decoder) array(key string) any {
	typ := d.u32()
	if d.err == nil && (typ >= uint32(len(minValueBytes)) || minValueBytes[typ] == 0) {
		d.fail("metadata key %q is an array of unsupported value type %d", key, typ)
	}
	if d.err != nil {
		return nil
	}
	n := d.count("elements of "+key, minValueBytes[typ])
	switch typ {
	case typeU8, typeU16, typeU32, typeU64:
		return collect(d, n, func() uint64 { return d.uint(typ) })
	case typeI8, typeI16, typeI32, typeI64:
		return collect(d, n, func() int64 { return d.int(typ) })
	case typeF32, typeF64:
		return collect(d, n, func() float64 { return d.float(typ) })
	case typeBool:
		return collect(d, n, func() bool { return d.u8() != 0 })
	}
	return collect(d, n, func() string { return d.string(maxStringBytes) })
}

// collect grows the slice as values arrive, so that a false count costs no more than the bytes that are really there.
func collect[T any](d *decoder, n int, read func() T) []T {
	out := make([]T, 0, min(n, 1024))
	for i := 0; i < n && d.err == nil; i++ {
		out = append(out, read())
	}
	return out
}

func (d *decoder) uint(typ uint32) uint64 {
	switch typ {
	case typeU8:
		return uint64(d.u8())
	case typeU16:
		return uint64(d.u16())
	case typeU32:
		return uint64(d.u32())
	}
	return d.u64()
}

func (d *decoder) int(typ uint32) int64 {
	switch typ {
	case typeI8:
		return int64(int8(d.u8()))
	case typeI16:
		return int64(int16(d.u16()))
	case typeI32:
		return int64(int32(d.u32()))
	}
	return int64(d.u64())
}

func (d *decoder) float(typ uint32) float64 {
	if typ == typeF32 {
		return float64(math.Float32frombits(d.u32()))
	}
	return math.Float64frombits(d.u64())
}

// Get returns the value of key as a T. The error wraps [ErrMissing] if it is not there and [ErrFormat] if it is not a T.
func Get[T any](m Metadata, key string) (T, error) {
	var zero T
	v, ok := m[key]
	if !ok {
		return zero, fmt.Errorf("%w: %w: %s", ErrFormat, ErrMissing, key)
	}
	t, ok := v.(T)
	if !ok {
		return zero, fmt.Errorf("%w: metadata key %s is a %T, want a %T", ErrFormat, key, v, zero)
	}
	return t, nil
}

// Uint returns the whole number under key, of any integer type, refusing negative ones and those above limit.
func (m Metadata) Uint(key string, limit int) (int, error) {
	var n uint64
	switch v := m[key].(type) {
	case uint64:
		n = v
	case int64:
		if v < 0 {
			return 0, fmt.Errorf("%w: metadata key %s is %d, want 0 to %d", ErrFormat, key, v, limit)
		}
		n = uint64(v)
	default:
		_, err := Get[uint64](m, key)
		return 0, err
	}
	if n > uint64(limit) {
		return 0, fmt.Errorf("%w: metadata key %s is %d, want 0 to %d", ErrFormat, key, n, limit)
	}
	return int(n), nil
}
