package llama

import (
	"errors"
	"fmt"
	"math"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// hparams are the hyper-parameters of a model: its shape and the numbers outside the tensors that it computes with.
type hparams struct {
	name     string
	context  int // tokens the model was trained for
	layers   int
	dim      int // width of the residual stream
	ffn      int // inner width of the feed-forward network
	heads    int
	kvHeads  int
	headDim  int
	ropeDims int // leading dimensions of a head that are rotated
	eps      float32
	ropeBase float32
	// ropeScale multiplies positions: 1 / the linear scaling factor.
	ropeScale float32
	vocab     int
}

// Limits on hyper-parameters, far above every model there is; with them no product of two overflows.
const (
	maxContext = 1 << 24
	maxWidth   = 1 << 20
	maxVocab   = 1 << 24
	maxHeads   = 2048
)

// readHparams takes them from metadata, with the defaults of the architecture, and checks that they fit together.
func readHparams(m gguf.Metadata) (hparams, error) {
	arch, err := gguf.Get[string](m, "general.architecture")
	if err != nil {
		return hparams{}, err
	}
	if arch != "llama" {
		return hparams{}, fmt.Errorf("architecture %q is not supported, only llama: use a Llama-family model", arch)
	}
	var errs []error
	number := func(key string, limit, missing int) int {
		n, err := m.Uint("llama."+key, limit)
		if errors.Is(err, gguf.ErrMissing) && missing > 0 {
			return missing
		}
		if err == nil && n == 0 {
			err = fmt.Errorf("metadata key llama.%s is 0", key)
		}
		if err != nil {
			errs = append(errs, err)
		}
		return n
	}
	real := func(key string, missing float64) float32 {
		v, err := gguf.Get[float64](m, "llama."+key)
		if errors.Is(err, gguf.ErrMissing) && missing > 0 {
			v, err = missing, nil
		}
		if err == nil && !(v > 0 && v <= math.MaxFloat32) {
			err = fmt.Errorf("metadata key llama.%s is %v, want a positive number", key, v)
		}
		if err != nil {
			errs = append(errs, err)
		}
		return float32(v)
	}
	h := hparams{
		context:   number("context_length", maxContext, 0),
		layers:    number("block_count", block.MaxLayers, 0),
		dim:       number("embedding_length", maxWidth, 0),
		ffn:       number("feed_forward_length", maxWidth, 0),
		heads:     number("attention.head_count", maxHeads, 0),
		eps:       real("attention.layer_norm_rms_epsilon", 0),
		ropeBase:  real("rope.freq_base", 10000),
		ropeScale: 1,
	}
	h.name, _ = gguf.Get[string](m, "general.name")
	h.kvHeads = number("attention.head_count_kv", block.MaxKVHeads, max(h.heads, 1))
	if len(errs) > 0 {
		return hparams{}, errors.Join(errs...)
	}
	h.headDim = number("attention.key_length", kernel.MaxHeadDim, max(h.dim/h.heads, 1))
	valueDim := number("attention.value_length", kernel.MaxHeadDim, h.headDim)
	h.ropeDims = number("rope.dimension_count", kernel.MaxHeadDim, h.headDim)
	errs = append(errs, h.readRopeScaling(m))
	if valueDim != h.headDim {
		errs = append(errs, fmt.Errorf("keys have %d dimensions and values %d: different widths are not supported", h.headDim, valueDim))
	}
	errs = append(errs, h.check())
	return h, errors.Join(errs...)
}

func (h *hparams) readRopeScaling(m gguf.Metadata) error {
	kind, err := gguf.Get[string](m, "llama.rope.scaling.type")
	switch {
	case errors.Is(err, gguf.ErrMissing) || kind == "none":
		return nil
	case err != nil:
		return err
	case kind != "linear":
		return fmt.Errorf("rope scaling %q is not supported, only linear", kind)
	}
	factor, err := gguf.Get[float64](m, "llama.rope.scaling.factor")
	if err != nil {
		return err
	}
	if !(factor > 0 && factor < 1e6) {
		return fmt.Errorf("rope scaling factor is %v, want a positive number", factor)
	}
	h.ropeScale = float32(1 / factor)
	return nil
}

func (h *hparams) check() error {
	switch {
	case h.headDim > kernel.MaxHeadDim:
		return fmt.Errorf("heads have %d dimensions, at most %d are supported", h.headDim, kernel.MaxHeadDim)
	case h.heads%h.kvHeads != 0:
		return fmt.Errorf("%d query heads cannot share %d KV heads evenly", h.heads, h.kvHeads)
	case h.ropeDims > h.headDim || h.ropeDims%2 != 0:
		return fmt.Errorf("rope turns %d dimensions of a head of %d: want an even number within the head", h.ropeDims, h.headDim)
	}
	return nil
}

// qDim and kvDim are the widths of all query heads and of all KV heads together.
func (h *hparams) qDim() int  { return h.heads * h.headDim }
func (h *hparams) kvDim() int { return h.kvHeads * h.headDim }

// group is the number of query heads that share a KV head.
func (h *hparams) group() int { return h.heads / h.kvHeads }

// describe adds to a manifest what changes the result and is in no tensor's shape.
func (h *hparams) describe(m *engine.Manifest) {
	m.String("architecture", "llama")
	m.Uint("heads", uint64(h.heads))
	m.Uint("kv_heads", uint64(h.kvHeads))
	m.Uint("head_dim", uint64(h.headDim))
	m.Uint("rope_dims", uint64(h.ropeDims))
	m.Float("rms_epsilon", float64(h.eps))
	m.Float("rope_base", float64(h.ropeBase))
	m.Float("rope_scale", float64(h.ropeScale))
	m.Uint("layers", uint64(h.layers))
}

// layout is the K/V layout of this model, rounded by the kernels of this process.
func (h *hparams) layout(blockTokens int) block.Layout {
	return block.Layout{
		DType: block.F16, Order: block.OrderLKTHD,
		Layers: h.layers, KVHeads: h.kvHeads, HeadDim: h.headDim, BlockTokens: blockTokens,
		TPSize:   1,
		RopeBase: h.ropeBase, RopeScale: h.ropeScale,
		Numerics: numericsVersion + " " + kernel.Tag(),
	}
}

// numericsVersion names the arithmetic of this package. Raise it with every change that changes a bit of K or V.
const numericsVersion = "llama-go/1"
