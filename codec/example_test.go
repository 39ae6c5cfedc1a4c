package codec_test

import (
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
)

// exampleLayout has blocks of one part with 512 bytes.
var exampleLayout = block.Layout{DType: block.BF16, Order: block.OrderLKTHD, Layers: 2, KVHeads: 2, HeadDim: 4, BlockTokens: 8,
	TPSize: 1, RopeBase: 10000, RopeScale: 1, Numerics: "example/1"}

// exampleHeader is what a worker says of the first block of a prompt.
func exampleHeader() codec.Header {
	id := block.Identity{Weights: block.Digest{1}, Layout: exampleLayout.Digest()}
	chain := block.NewChain(nil, id, "tenant", exampleLayout.BlockTokens)
	return codec.Header{Identity: id, Namespace: chain.Namespace(), Epoch: 7, Hash: chain.Next(chain.Root(), []int32{1, 2, 3, 4, 5, 6, 7, 8})}
}

// K/V is written at its final place in the frame, which Seal completes, and is read where the frame lies.
func Example() {
	f, err := codec.NewFormat(exampleLayout)
	if err != nil {
		fmt.Println(err)
		return
	}
	h := exampleHeader()
	for _, p := range f.Parts() {
		h.Part = p.Index
		frame := make([]byte, f.FrameBytes(p))
		copy(f.Payload(frame), "what the engine exports")
		if err := f.Seal(frame, h); err != nil {
			fmt.Println(err)
			return
		}
		payload, err := f.Open(frame, h) // as it comes back from a store
		fmt.Printf("%d of %d bytes are payload: %.23s, %v\n", len(payload), len(frame), payload, err)
	}
	// Output: 512 of 832 bytes are payload: what the engine exports, <nil>
}

// A reader says what it expects. The error names the field that is another, which tells a write that came too late from one of other weights.
func ExampleError() {
	f, err := codec.NewFormat(exampleLayout)
	if err != nil {
		fmt.Println(err)
		return
	}
	h := exampleHeader()
	frame := make([]byte, f.FrameBytes(f.Parts()[0]))
	if err := f.Seal(frame, h); err != nil {
		fmt.Println(err)
		return
	}
	h.Epoch++ // purged meanwhile
	_, err = f.Open(frame, h)
	if e, ok := errors.AsType[*codec.Error](err); ok && errors.Is(err, codec.ErrForeign) && e.Field == codec.FieldEpoch {
		fmt.Println("miss:", err)
	}
	// Output: miss: codec: value of another identity: epoch differs
}

// A writer on a slow link stores a smaller frame that says the same. A reader gets back the frame it was made of, in the buffer it read into.
func ExampleFormat_Encode() {
	f, err := codec.NewFormat(exampleLayout)
	if err != nil {
		fmt.Println(err)
		return
	}
	h, part := exampleHeader(), f.Parts()[0]
	frame := make([]byte, f.FrameBytes(part)) // all zeros: the smallest there is
	if err := f.Seal(frame, h); err != nil {
		fmt.Println(err)
		return
	}
	var scratch codec.Scratch
	small, ok := f.Encode(nil, frame, codec.Planes, &scratch)
	fmt.Println(ok, len(frame), "bytes became", len(small))

	buf := make([]byte, f.MaxFrameBytes(part))
	again, _, err := f.OpenAny(buf, copy(buf, small), h, &scratch)
	fmt.Println(string(again) == string(frame), err)
	// Output:
	// true 832 bytes became 596
	// true <nil>
}

// Tools look at a value without expecting anything of it.
func ExampleInspect() {
	f, err := codec.NewFormat(exampleLayout)
	if err != nil {
		fmt.Println(err)
		return
	}
	frame := make([]byte, f.FrameBytes(f.Parts()[0]))
	if err := f.Seal(frame, exampleHeader()); err != nil {
		fmt.Println(err)
		return
	}
	info, err := codec.Inspect(frame)
	fmt.Println(info.Major, info.Meta.DType, info.Meta.Layers, "layers, epoch", info.Header.Epoch, info.Encoding, err)
	// Output: 2 bf16 2 layers, epoch 7 raw <nil>
}
