package llamacpp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kvtier/kvtier/block"
)

// randomSlot draws a file: its bytes, and what the writer was given.
func randomSlot(t *rapid.T) ([]byte, *slotWriter) {
	dtype := rapid.SampledFrom([]block.DType{block.F16, block.BF16, block.F32}).Draw(t, "dtype")
	w := &slotWriter{
		slotShape: slotShape{
			streams: rapid.IntRange(1, 4).Draw(t, "streams"),
			layers:  rapid.IntRange(1, 5).Draw(t, "layers"),
			dtype:   dtype,
			row:     dtype.Size() * rapid.IntRange(1, 9).Draw(t, "width"),
		},
		tokens: rapid.SliceOfN(rapid.Int32Range(0, 1<<20), 1, 40).Draw(t, "tokens"),
		seq:    rapid.Int32Range(0, 3).Draw(t, "seq"),
	}
	w.stream = rapid.IntRange(0, w.streams-1).Draw(t, "stream")
	if rapid.Bool().Draw(t, "scattered") {
		w.pos = make([]int32, len(w.tokens))
		for i := range w.pos {
			w.pos[i] = int32(i)
		}
		w.pos = rapid.Permutation(w.pos).Draw(t, "pos")
	}
	// a row says where it belongs: layer, K or V, position
	w.rows = func(layer, which int, dst []byte) error {
		for i := range w.tokens {
			pos := i
			if w.pos != nil {
				pos = int(w.pos[i])
			}
			copy(dst[i*w.row:][:w.row], row(w.row, layer, which, pos))
		}
		return nil
	}
	var b bytes.Buffer
	if err := w.writeTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), w
}

func row(n, layer, which, pos int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(layer*2+which), uint64(pos)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// rebuild writes a parsed file again, from nothing but what the parser hands out.
func rebuild(f *slotFile) ([]byte, error) {
	w := slotWriter{slotShape: f.slotShape, tokens: f.tokens, stream: f.stream, seq: f.seq, pos: f.pos}
	w.rows = func(layer, which int, dst []byte) error {
		for i, pos := range f.pos {
			if err := f.readRows(layer, which, int(pos), 1, dst[i*f.row:][:f.row]); err != nil {
				return err
			}
		}
		return nil
	}
	var b bytes.Buffer
	err := w.writeTo(&b)
	return b.Bytes(), err
}

func TestSlotFilesComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, w := randomSlot(t)
		f, err := parseSlotFile(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if f.slotShape != w.slotShape || !slices.Equal(f.tokens, w.tokens) {
			t.Fatalf("parsed %+v with tokens %v, want %+v with %v", f.slotShape, f.tokens, w.slotShape, w.tokens)
		}
		again, err := rebuild(f)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written again it has other bytes (error %v)", err)
		}
		// any run of rows of any plane is in order of position
		pos := rapid.IntRange(0, len(w.tokens)-1).Draw(t, "first")
		n := rapid.IntRange(1, len(w.tokens)-pos).Draw(t, "n")
		for layer := range f.layers {
			for which := range 2 {
				got := make([]byte, n*f.row)
				if err := f.readRows(layer, which, pos, n, got); err != nil {
					t.Fatal(err)
				}
				var want []byte
				for i := range n {
					want = append(want, row(f.row, layer, which, pos+i)...)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("layer %d, %d: other rows at %d", layer, which, pos)
				}
			}
		}
	})
}

// TestRealSlotFile parses a file that llama.cpp 0.7.0 has written: 21 tokens in the second of two slots of a model of 1 layer.
func TestRealSlotFile(t *testing.T) {
	b, err := os.ReadFile("testdata/slot-v4.bin")
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseSlotFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	want := slotShape{streams: 2, layers: 1, dtype: block.F16, row: 16}
	if f.slotShape != want || f.stream != 1 || f.seq != 1 || len(f.tokens) != 21 || f.cell != nil {
		t.Errorf("parsed %+v, stream %d, sequence %d, %d tokens, want %+v, 1, 1 and 21", f.slotShape, f.stream, f.seq, len(f.tokens), want)
	}
	again, err := rebuild(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, again); diff != "" {
		t.Errorf("written again: %s", diff)
	}
}

// smallSlot is a file of 3 tokens, 2 streams, 2 layers, and where its parts begin.
func smallSlot() []byte {
	w := slotWriter{slotShape: slotShape{streams: 2, layers: 2, dtype: block.F16, row: 4}, tokens: []int32{5, 6, 7}}
	w.rows = func(_, _ int, dst []byte) error { clear(dst); return nil }
	var b bytes.Buffer
	_ = w.writeTo(&b) // a buffer takes everything
	return b.Bytes()
}

func TestCrookedSlotFilesAreRefused(t *testing.T) {
	const (
		version, count, list = 4, 8, 12
		streams              = list + 4*7
		cells                = streams + 8
		shape                = cells + 3*cellBytes
		planes               = shape + 16
	)
	set := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		says   string
	}{
		"empty":                    {func([]byte) []byte { return nil }, "ends inside the header"},
		"another magic":            {set(0, 0x67677370), `begins with "psgg"`},
		"a later version":          {set(version, 5), "version 5, only 4"},
		"too many tokens":          {set(count, 1<<31), "numbers, want"},
		"more tokens than bytes":   {set(count, 1<<20), "ends inside the tokens"},
		"no list":                  {set(count, 3), "list of tokens has 3 numbers"},
		"another list":             {set(list+4, 2), "begins with -1 2 3"},
		"another count of tokens":  {set(list+8, 2), "begins with -1 1 2"},
		"no end of the list":       {set(list+24, 1), "ends with 1"},
		"no streams":               {set(streams, 0), "0 streams"},
		"many streams":             {set(streams, 1<<30), "streams, want 1 to 256"},
		"no cells":                 {set(streams+4, 0), "it has no cells"}, // a position is read as the next stream
		"more cells than tokens":   {set(streams+4, 4), "4 cells for 3 tokens"},
		"a position twice":         {set(cells+cellBytes, 0), "cell 1 is at position 0"},
		"a position outside":       {set(cells, 3), "cell 0 is at position 3"},
		"a negative position":      {set(cells, 1<<32-1), "position -1"},
		"a cell of two sequences":  {set(cells+4, 2), "belongs to 2 sequences"},
		"a cell of another":        {set(cells+cellBytes+8, 1), "cell 1 belongs to 1 sequences, 1 the first"},
		"V transposed":             {set(shape, 1), "--flash-attn on"},
		"no layers":                {set(shape+4, 0), "0 layers"},
		"many layers":              {set(shape+4, 1<<31), "layers, want 1 to"},
		"more layers than planes":  {set(shape+4, 3), "ends inside"},
		"fewer layers than planes": {set(shape+4, 1), "more than one stream has cells"},
		"something unknown":        {set(shape+8, 1), "only 0 is known"},
		"quantised K":              {set(planes, 8), "--cache-type-k f16"},
		"rows of nothing":          {set(planes+4, 0), "rows of f16 have 0 bytes"},
		"odd rows":                 {set(planes+4, 3), "rows of f16 have 3 bytes"},
		"long rows":                {set(planes+8, 1), "rows of f16"},
		"rows past the end":        {set(planes+4, 1<<20), "ends inside plane"},
		"another layer's type":     {set(planes+12+12, 0), "all layers must be alike"},
		"a second stream":          {set(len(smallSlot())-4, 1), "more than one stream has cells"},
		"a byte more":              {func(b []byte) []byte { return append(b, 0) }, "1 bytes follow its end"},
	} {
		b := c.change(smallSlot())
		_, err := parseSlotFile(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, ErrSlotFile) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.says)
		}
	}
	whole := smallSlot()
	for n := range whole {
		if _, err := parseSlotFile(bytes.NewReader(whole[:n]), int64(n)); !errors.Is(err, ErrSlotFile) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(whole), err)
		}
	}
	// shorter than it claims to be, as when it is cut while it is read
	if _, err := parseSlotFile(bytes.NewReader(whole[:60]), int64(len(whole))); err == nil {
		t.Error("a file that shrinks: no error")
	}
}

func FuzzSlotFile(f *testing.F) {
	f.Add(smallSlot())
	if b, err := os.ReadFile("testdata/slot-v4.bin"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSlotFile(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrSlotFile) {
				t.Fatalf("%v is no ErrSlotFile", err)
			}
			return
		}
		again, err := rebuild(s)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("written again it has other bytes (error %v)", err)
		}
	})
}
