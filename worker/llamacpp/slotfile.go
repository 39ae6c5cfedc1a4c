package llamacpp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kvtier/kvtier/block"
)

// ErrSlotFile means that a slot file is damaged or of a format that this package does not know.
var ErrSlotFile = errors.New("llamacpp: unusable slot file")

// The format of llama.cpp 0.7.0, little-endian. It is internal to llama.cpp, so everything is checked that can be:
//
//	"qsgg", u32 version, u32 n, i32[n]: -1, 1, count, token ids, 0
//	u32 streams, each: u32 cells, and if there are any
//	    cells × {i32 position, u32 1, i32 sequence}
//	    u32 V transposed, u32 layers, u32 0, u32 0
//	    layers × K, then layers × V: {i32 element type, u64 row bytes, rows[cell]}
const (
	slotMagic    = "qsgg"
	slotVersion  = 4
	slotWrapper  = 4 // numbers around the token ids
	cellBytes    = 12
	planeHeader  = 12
	maxStreams   = 256 // llama.cpp's own limit
	maxSlotCells = 1 << 24
)

// slotShape is what all slot files of one server have in common.
type slotShape struct {
	streams int
	layers  int
	dtype   block.DType
	row     int // bytes of one token's K, or V, in one layer
}

// ggmlTypes maps element types to ggml's numbers. Quantised K/V is not among them: a block's layout has no name for it.
var ggmlTypes = map[block.DType]int32{block.F32: 0, block.F16: 1, block.BF16: 30}

func (s slotShape) planeBytes(cells int) int64 { return planeHeader + int64(cells)*int64(s.row) }

// slotFile is a parsed slot file. K and V stay where they are.
type slotFile struct {
	slotShape
	r      io.ReaderAt
	tokens []int32
	stream int     // the one that has cells
	seq    int32   // the sequence they belong to
	pos    []int32 // of each cell
	cell   []int32 // of each position; nil if cells are in order of position
	planes int64   // offset of layer 0's K
}

// parseSlotFile reads everything but K and V from the first size bytes of r, which must be all of the file. It keeps r.
func parseSlotFile(r io.ReaderAt, size int64) (*slotFile, error) {
	p := slotParser{r: r, size: size}
	f, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSlotFile, err)
	}
	return f, nil
}

type slotParser struct {
	r        io.ReaderAt
	at, size int64
	buf      []byte
}

// take returns the next n bytes, valid until the next call.
func (p *slotParser) take(n int64, what string) ([]byte, error) {
	if n > p.size-p.at {
		return nil, fmt.Errorf("it ends inside %s: %d bytes are left, %d should follow", what, p.size-p.at, n)
	}
	if int64(cap(p.buf)) < n {
		p.buf = make([]byte, n)
	}
	b := p.buf[:n]
	if _, err := p.r.ReadAt(b, p.at); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	p.at += n
	return b, nil
}

func (p *slotParser) number(what string) (uint32, error) {
	b, err := p.take(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (p *slotParser) parse() (*slotFile, error) {
	f := &slotFile{r: p.r}
	for _, step := range []func(*slotFile) error{p.header, p.streams, p.shape, p.checkPlanes} {
		if err := step(f); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (p *slotParser) header(f *slotFile) error {
	b, err := p.take(12, "the header")
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if string(b[:4]) != slotMagic {
		return fmt.Errorf("it begins with %q, want %q", b[:4], slotMagic)
	}
	if v := le.Uint32(b[4:]); v != slotVersion {
		return fmt.Errorf("it has version %d, only %d is known", v, slotVersion)
	}
	n := le.Uint32(b[8:])
	if n < slotWrapper || n > maxSlotCells {
		return fmt.Errorf("its list of tokens has %d numbers, want %d to %d", n, slotWrapper, maxSlotCells)
	}
	if b, err = p.take(4*int64(n), "the tokens"); err != nil {
		return err
	}
	list := make([]int32, n)
	for i := range list {
		list[i] = int32(le.Uint32(b[4*i:]))
	}
	count := n - slotWrapper
	if list[0] != -1 || list[1] != 1 || list[2] != int32(count) || list[n-1] != 0 {
		return fmt.Errorf("its list of %d tokens begins with %d %d %d and ends with %d, want -1 1 %d and 0", n, list[0], list[1], list[2], list[n-1], count)
	}
	f.tokens = list[3 : n-1]
	return nil
}

// streams reads up to the shape of the one stream that has cells; what follows its planes is read by checkPlanes.
func (p *slotParser) streams(f *slotFile) error {
	n, err := p.number("the number of streams")
	if err != nil {
		return err
	}
	if n < 1 || n > maxStreams {
		return fmt.Errorf("it has %d streams, want 1 to %d", n, maxStreams)
	}
	f.slotShape.streams = int(n)
	for ; f.stream < int(n); f.stream++ {
		cells, err := p.number("a stream")
		if err != nil {
			return err
		}
		if cells == 0 {
			continue
		}
		if int(cells) != len(f.tokens) {
			return fmt.Errorf("it has %d cells for %d tokens", cells, len(f.tokens))
		}
		return p.cells(f)
	}
	return errors.New("it has no cells")
}

func (p *slotParser) cells(f *slotFile) error {
	n := len(f.tokens)
	b, err := p.take(cellBytes*int64(n), "the cells")
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	f.pos = make([]int32, n)
	f.seq = int32(le.Uint32(b[8:]))
	seen, ordered := make([]int32, n), true
	for i := range f.pos {
		c := b[cellBytes*i:]
		pos, seqs, seq := int32(le.Uint32(c)), le.Uint32(c[4:]), int32(le.Uint32(c[8:]))
		if seqs != 1 || seq != f.seq {
			return fmt.Errorf("cell %d belongs to %d sequences, %d the first: want only %d", i, seqs, seq, f.seq)
		}
		if pos < 0 || int(pos) >= n || seen[pos] != 0 {
			return fmt.Errorf("cell %d is at position %d: want each of 0 to %d once", i, pos, n-1)
		}
		f.pos[i], seen[pos] = pos, int32(i)+1
		ordered = ordered && int(pos) == i
	}
	if !ordered {
		f.cell = seen
		for i := range f.cell {
			f.cell[i]--
		}
	}
	return nil
}

func (p *slotParser) shape(f *slotFile) error {
	b, err := p.take(16, "the shape")
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	transposed, layers := le.Uint32(b), le.Uint32(b[4:])
	if transposed != 0 {
		return errors.New("V is stored transposed: start llama-server with --flash-attn on")
	}
	if layers < 1 || layers > block.MaxLayers {
		return fmt.Errorf("it has %d layers, want 1 to %d", layers, block.MaxLayers)
	}
	if x, y := le.Uint32(b[8:]), le.Uint32(b[12:]); x != 0 || y != 0 {
		return fmt.Errorf("it has %d and %d where only 0 is known", x, y)
	}
	f.layers, f.planes = int(layers), p.at
	return nil
}

// checkPlanes holds every plane to the first one's type and row, and the file's size to the sum of all.
func (p *slotParser) checkPlanes(f *slotFile) error {
	for i := range 2 * f.layers {
		b, err := p.take(planeHeader, "K and V")
		if err != nil {
			return err
		}
		typ, row := int32(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint64(b[4:])
		if i == 0 {
			if err := f.setRow(typ, row); err != nil {
				return err
			}
		}
		if typ != ggmlTypes[f.dtype] || row != uint64(f.row) {
			return fmt.Errorf("plane %d has rows of %d bytes of ggml type %d, the first has %d of %d: all layers must be alike", i, row, typ, f.row, ggmlTypes[f.dtype])
		}
		if rows := int64(len(f.pos)) * int64(f.row); rows > p.size-p.at {
			return fmt.Errorf("it ends inside plane %d of %d", i, 2*f.layers)
		} else {
			p.at += rows
		}
	}
	for i := f.stream + 1; i < f.slotShape.streams; i++ {
		if cells, err := p.number("a stream"); err != nil {
			return err
		} else if cells != 0 {
			return errors.New("more than one stream has cells")
		}
	}
	if p.at != p.size {
		return fmt.Errorf("%d bytes follow its end: a model with more than one kind of memory is not supported", p.size-p.at)
	}
	return nil
}

func (f *slotFile) setRow(typ int32, row uint64) error {
	for dtype, t := range ggmlTypes {
		if t != typ {
			continue
		}
		if row < 1 || row > block.MaxKVHeads*block.MaxHeadDim*uint64(dtype.Size()) || row%uint64(dtype.Size()) != 0 {
			return fmt.Errorf("rows of %v have %d bytes", dtype, row)
		}
		f.dtype, f.row = dtype, int(row)
		return nil
	}
	return fmt.Errorf("K/V has ggml type %d: start llama-server with --cache-type-k f16 --cache-type-v f16", typ)
}

// readRows reads K (which = 0) or V (1) of one layer, positions pos to pos+n-1, into dst: n × row bytes.
func (f *slotFile) readRows(layer, which, pos, n int, dst []byte) error {
	start := f.planes + int64(which*f.layers+layer)*f.planeBytes(len(f.pos)) + planeHeader
	for len(dst) > 0 {
		cell, run := pos, n
		if f.cell != nil {
			cell, run = int(f.cell[pos]), 1
			for run < n && f.cell[pos+run] == f.cell[pos]+int32(run) {
				run++
			}
		}
		b := dst[:run*f.row]
		if _, err := f.r.ReadAt(b, start+int64(cell)*int64(f.row)); err != nil {
			return fmt.Errorf("%w: read layer %d: %w", ErrSlotFile, layer, err)
		}
		dst, pos, n = dst[len(b):], pos+run, n-run
	}
	return nil
}

// slotWriter writes a slot file of a shape.
type slotWriter struct {
	slotShape
	tokens []int32
	stream int
	seq    int32
	pos    []int32 // of each cell; nil for order of position
	// rows fills dst with K (which = 0) or V (1) of one layer of every cell.
	rows func(layer, which int, dst []byte) error
}

func (s *slotWriter) writeTo(w io.Writer) error {
	le := binary.LittleEndian
	n := len(s.tokens)
	b := make([]byte, 0, 64+4*n+cellBytes*n+4*s.streams)
	put := func(v ...int32) {
		for _, x := range v {
			b = le.AppendUint32(b, uint32(x))
		}
	}
	b = append(b, slotMagic...)
	put(slotVersion, int32(n+slotWrapper), -1, 1, int32(n))
	put(s.tokens...)
	put(0, int32(s.streams))
	for range s.stream {
		put(0)
	}
	put(int32(n))
	for i := range int32(n) {
		pos := i
		if s.pos != nil {
			pos = s.pos[i]
		}
		put(pos, 1, s.seq)
	}
	put(0, int32(s.layers), 0, 0)
	if _, err := w.Write(b); err != nil {
		return err
	}
	plane := make([]byte, s.planeBytes(n))
	le.PutUint32(plane, uint32(ggmlTypes[s.dtype]))
	le.PutUint64(plane[4:], uint64(s.row))
	for which := range 2 {
		for layer := range s.layers {
			if err := s.rows(layer, which, plane[planeHeader:]); err != nil {
				return err
			}
			if _, err := w.Write(plane); err != nil {
				return err
			}
		}
	}
	_, err := w.Write(make([]byte, 4*(s.streams-s.stream-1)))
	return err
}
