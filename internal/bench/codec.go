package bench

import (
	"context"
	"errors"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
)

// CodecResult is one way to encode a stored value, on one core. Rates count the payload as the engine sees it; a ratio of 2 is half the
// bytes. JSON names are stable.
type CodecResult struct {
	Name       string  `json:"name"`
	Ratio      float64 `json:"ratio"`
	EncodeGBps float64 `json:"encode_gbps"`
	DecodeGBps float64 `json:"decode_gbps"`
	Lossless   bool    `json:"lossless"`
	// EncodeToMemcpy and DecodeToMemcpy compare with copying the payload once, round by round.
	EncodeToMemcpy float64 `json:"encode_to_memcpy"`
	DecodeToMemcpy float64 `json:"decode_to_memcpy"`
	AllocsPerOp    float64 `json:"allocs_per_op"`  // of encode and decode together
	Loss           *Loss   `json:"loss,omitempty"` // of what is not lossless; Codec leaves it to the caller
}

// Loss is what a lossy codec costs a model; package loss measures it. JSON names are stable.
type Loss struct {
	Model  string `json:"model"`
	Prefix int    `json:"prefix_tokens"` // that passed through the codec before each run of scored tokens
	Scored int    `json:"scored_tokens"` // altogether
	// PerplexityExact and Perplexity are e to the mean cross-entropy of the text, without and with the codec.
	PerplexityExact float64 `json:"perplexity_exact"`
	Perplexity      float64 `json:"perplexity"`
	// LogitRMS and LogitMax are distances between logits with and without; LogitSpread is the standard deviation of logits, to compare with.
	LogitRMS    float64 `json:"logit_rms"`
	LogitMax    float64 `json:"logit_max"`
	LogitSpread float64 `json:"logit_spread"`
	SameTop     float64 `json:"same_top"` // part of positions whose likeliest token is the same
}

// encoding is what the benchmark needs of a codec: frames of blocks, made and read in turn.
type encoding struct {
	name     string
	lossless bool
	encode   func(i int) (stored int, err error)
	decode   func(i int) error
}

// codecBlocks is how many blocks of 2 MiB take turns: more than the processor's caches hold, as in use.
const codecBlocks = 24

// Codec measures every codec that this build can write, on synthetic bf16 K/V, for about d.
func Codec(ctx context.Context, d time.Duration, step func()) ([]CodecResult, error) {
	l := block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 32, KVHeads: 8, HeadDim: 128, BlockTokens: 16, TPSize: 1,
		RopeBase: 500000, RopeScale: 1, Numerics: "kvtier-bench/1"}
	src := make([][]byte, codecBlocks)
	for i := range src {
		src[i] = make([]byte, l.BlockBytes())
		if i < 2 { // two distributions are enough; the rest are copies at other addresses
			fillKV(src[i], l, uint64(i))
		} else {
			copy(src[i], src[i%2])
		}
	}
	var encodings []encoding
	for _, open := range codecs {
		e, err := open(l, src)
		if err != nil {
			return nil, err
		}
		encodings = append(encodings, e)
	}

	dst := make([]byte, l.BlockBytes())
	at := 0
	methods := []Method{{"memcpy", func(context.Context) (Work, error) {
		at = (at + 1) % len(src)
		return Work{Bytes: int64(copy(dst, src[at])), Ops: 1}, nil
	}}}
	results := make([]CodecResult, len(encodings))
	for i, e := range encodings {
		results[i] = CodecResult{Name: e.name, Lossless: e.lossless}
		var stored int64
		for j := range src { // so that everything can be decoded from the start
			n, err := e.encode(j)
			if err != nil {
				return nil, err
			}
			stored += int64(n)
		}
		results[i].Ratio = float64(len(src)*l.BlockBytes()) / float64(stored)
		turn := func(do func(int) error) func(context.Context) (Work, error) {
			next := 0
			return func(context.Context) (Work, error) {
				next = (next + 1) % len(src)
				return Work{Bytes: int64(l.BlockBytes()), Ops: 1}, do(next)
			}
		}
		methods = append(methods,
			Method{e.name + " encode", turn(func(j int) error { _, err := e.encode(j); return err })},
			Method{e.name + " decode", turn(e.decode)})
	}
	series, err := Rounds(ctx, PlanFor(d, len(methods)), methods, step)
	if err != nil {
		return nil, err
	}
	for i := range results {
		enc, dec := series[1+2*i], series[2+2*i]
		r := &results[i]
		r.EncodeGBps, r.DecodeGBps = enc.Of(Sample.GBps).Median, dec.Of(Sample.GBps).Median
		r.EncodeToMemcpy, r.DecodeToMemcpy = enc.Ratio(series[0]).Median, dec.Ratio(series[0]).Median
		r.AllocsPerOp = enc.Of(Sample.AllocsPerOp).Median + dec.Of(Sample.AllocsPerOp).Median
	}
	return results, nil
}

// codecs are all that this build can write.
var codecs = []func(block.Layout, [][]byte) (encoding, error){rawEncoding, planesEncoding, int8Encoding}

// frames are blocks as they are stored.
type frames struct {
	format *codec.Format
	blocks [][][]byte // a frame for each part of each block
	heads  []codec.Header
}

func framesFor(l block.Layout, n int) (*frames, error) {
	format, err := codec.NewFormat(l)
	if err != nil {
		return nil, err
	}
	f := &frames{format: format, blocks: make([][][]byte, n)}
	for _, p := range format.Parts() {
		f.heads = append(f.heads, codec.Header{Identity: block.Identity{Weights: block.Digest{1}, Layout: l.Digest()}, Epoch: 1, Part: p.Index})
		for i := range f.blocks {
			f.blocks[i] = append(f.blocks[i], make([]byte, format.FrameBytes(p)))
		}
	}
	return f, nil
}

// fill puts the K/V of a block in its place.
func (f *frames) fill(i int, kv []byte) {
	for _, p := range f.format.Parts() {
		copy(f.format.Payload(f.blocks[i][p.Index]), kv[p.Offset:])
	}
}

func (f *frames) seal(i int) (stored int, err error) {
	for p, frame := range f.blocks[i] {
		stored += len(frame)
		err = errors.Join(err, f.format.Seal(frame, f.heads[p]))
	}
	return stored, err
}

// open verifies a block and hands its payload on, part by part.
func (f *frames) open(i int, use func(p block.Part, payload []byte)) error {
	for _, p := range f.format.Parts() {
		payload, err := f.format.Open(f.blocks[i][p.Index], f.heads[p.Index])
		if err != nil {
			return err
		}
		use(p, payload)
	}
	return nil
}

// rawEncoding is the default: the payload as it is, behind headers, with checksums.
func rawEncoding(l block.Layout, src [][]byte) (encoding, error) {
	f, err := framesFor(l, len(src))
	if err != nil {
		return encoding{}, err
	}
	for i, kv := range src {
		f.fill(i, kv)
	}
	return encoding{
		name: codec.Raw.String(), lossless: codec.Raw.Lossless(),
		encode: f.seal,
		decode: func(i int) error { return f.open(i, func(block.Part, []byte) {}) },
	}, nil
}

// planesEncoding is what a writer on a slow link does with frames that are sealed already, and a reader with what it fetched.
func planesEncoding(l block.Layout, src [][]byte) (encoding, error) {
	f, err := framesFor(l, len(src))
	if err != nil {
		return encoding{}, err
	}
	scratch, buf := new(codec.Scratch), make([]byte, f.format.FrameBytes(l.Part(0)))
	stored := make([][][]byte, len(src))
	for i, kv := range src {
		stored[i] = make([][]byte, len(f.heads))
		f.fill(i, kv)
		if _, err := f.seal(i); err != nil {
			return encoding{}, err
		}
	}
	return encoding{
		name: codec.Planes.String(), lossless: codec.Planes.Lossless(),
		encode: func(i int) (sum int, err error) {
			for p, frame := range f.blocks[i] {
				out, ok := f.format.Encode(stored[i][p][:0], frame, codec.Planes, scratch)
				if !ok {
					out = append(out[:0], frame...) // a small part may not shrink
				}
				stored[i][p] = out
				sum += len(out)
			}
			return sum, nil
		},
		decode: func(i int) error {
			for p, b := range stored[i] {
				n := copy(buf, b) // it is decoded where it was read to
				if _, _, err := f.format.OpenAny(buf, n, f.heads[p], scratch); err != nil {
					return err
				}
			}
			return nil
		},
	}, nil
}

// int8Encoding is what a worker with quantised K/V does on export and import, checksums included.
func int8Encoding(l block.Layout, src [][]byte) (encoding, error) {
	l.Quant = block.QuantInt8
	f, err := framesFor(l, len(src))
	if err != nil {
		return encoding{}, err
	}
	q, err := codec.NewQuantiser(l)
	if err != nil {
		return encoding{}, err
	}
	exact, quantised := make([]byte, len(src[0])), make([]byte, l.BlockBytes())
	return encoding{
		name: codec.Int8.String(), lossless: codec.Int8.Lossless(),
		encode: func(i int) (int, error) {
			if err := q.Quantise(quantised, src[i]); err != nil {
				return 0, err
			}
			f.fill(i, quantised)
			return f.seal(i)
		},
		decode: func(i int) error {
			if err := f.open(i, func(p block.Part, payload []byte) { copy(quantised[p.Offset:], payload) }); err != nil {
				return err
			}
			return q.Dequantise(exact, quantised)
		},
	}, nil
}

// CodecSlices is how often Codec calls step.
func CodecSlices(d time.Duration) int { return codecMethods * PlanFor(d, codecMethods).Rounds }

// codecMethods is memcpy, and encode and decode of each codec.
const codecMethods = 1 + 2*3
