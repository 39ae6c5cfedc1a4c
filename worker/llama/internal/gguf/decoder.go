package gguf

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// decoder reads little-endian values off the header and remembers the first error. After an error every method
// returns zero, so that callers check once per step.
type decoder struct {
	r    *bufio.Reader
	pos  int64 // of the next byte
	size int64 // of the whole file
	err  error
	buf  [8]byte
}

func newDecoder(r io.ReaderAt, size int64) *decoder {
	return &decoder{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 64<<10), size: size}
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrFormat}, args...)...)
	}
}

// left is the number of bytes after the next one to read: the bound of every allocation.
func (d *decoder) left() int64 { return max(0, d.size-d.pos) }

func (d *decoder) readFull(p []byte) {
	if d.err != nil {
		return
	}
	n, err := io.ReadFull(d.r, p)
	d.pos += int64(n)
	switch err {
	case nil:
	case io.EOF, io.ErrUnexpectedEOF:
		d.fail("the header ends early, at byte %d: the file is truncated", d.pos)
	default:
		d.err = err
	}
}

func (d *decoder) bytes(n int) []byte {
	if int64(n) > d.left() {
		d.fail("the header wants %d bytes at %d, but the file has %d: it is truncated", n, d.pos, d.size)
		return nil
	}
	p := make([]byte, n)
	d.readFull(p)
	return p
}

func (d *decoder) fixed(n int) []byte {
	clear(d.buf[:])
	d.readFull(d.buf[:n])
	return d.buf[:]
}

func (d *decoder) u8() uint8   { return d.fixed(1)[0] }
func (d *decoder) u16() uint16 { return binary.LittleEndian.Uint16(d.fixed(2)) }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.fixed(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.fixed(8)) }

// count reads how many of something follow, each of at least minBytes.
func (d *decoder) count(what string, minBytes int64) int {
	n := d.u64()
	if d.err == nil && n > uint64(d.left()/minBytes) {
		d.fail("it claims %d %s, more than fit the %d bytes that are left", n, what, d.left())
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// string reads a length-prefixed string of at most limit bytes.
func (d *decoder) string(limit uint64) string {
	n := d.u64()
	if d.err == nil && n > min(limit, uint64(d.left())) {
		d.fail("a string of %d bytes at %d is longer than the file or the limit of %d allows", n, d.pos, limit)
	}
	if d.err != nil {
		return ""
	}
	return string(d.bytes(int(n)))
}
