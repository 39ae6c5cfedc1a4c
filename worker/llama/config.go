package llama

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// config is what config.json of a Hugging Face checkpoint says that changes the result. Pointers tell what is absent from what is zero.
type config struct {
	ModelType     string      `json:"model_type"`
	Context       int         `json:"max_position_embeddings"`
	Layers        int         `json:"num_hidden_layers"`
	Dim           int         `json:"hidden_size"`
	FFN           int         `json:"intermediate_size"`
	Heads         int         `json:"num_attention_heads"`
	KVHeads       *int        `json:"num_key_value_heads"`
	HeadDim       *int        `json:"head_dim"`
	Vocab         int         `json:"vocab_size"`
	Epsilon       float64     `json:"rms_norm_eps"`
	RopeBase      *float64    `json:"rope_theta"`
	RopeScaling   *ropeConfig `json:"rope_scaling"`
	Rope          *ropeConfig `json:"rope_parameters"` // the two above in newer files
	Tie           bool        `json:"tie_word_embeddings"`
	Activation    string      `json:"hidden_act"`
	AttentionBias bool        `json:"attention_bias"`
	MLPBias       bool        `json:"mlp_bias"`
	Rotary        *float64    `json:"partial_rotary_factor"`
	Quantised     any         `json:"quantization_config"`
	BOS           tokenIDs    `json:"bos_token_id"`
	EOS           tokenIDs    `json:"eos_token_id"`
}

type ropeConfig struct {
	Type   string   `json:"rope_type"`
	Older  string   `json:"type"`
	Factor *float64 `json:"factor"`
	Base   *float64 `json:"rope_theta"`
}

// tokenIDs is a number, a list of numbers, or null.
type tokenIDs []int

func (t *tokenIDs) UnmarshalJSON(b []byte) error {
	var one *int
	if json.Unmarshal(b, &one) == nil {
		if *t = nil; one != nil {
			*t = tokenIDs{*one}
		}
		return nil
	}
	return json.Unmarshal(b, (*[]int)(t))
}

func parseConfig(data []byte) (config, error) {
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return c, err
	}
	if c.ModelType != "llama" {
		return c, fmt.Errorf("model_type %q is not supported, only llama: use a Llama-family model", c.ModelType)
	}
	return c, nil
}

// hparams checks what the file says, and refuses by name what would be computed in another way.
func (c config) hparams() (hparams, error) {
	h := hparams{
		context: c.Context, layers: c.Layers, dim: c.Dim, ffn: c.FFN, heads: c.Heads, kvHeads: c.Heads,
		eps: float32(c.Epsilon), ropeBase: 10000, ropeScale: 1,
	}
	if c.KVHeads != nil {
		h.kvHeads = *c.KVHeads
	}
	var errs []error
	within := func(name string, v, limit int) {
		if v < 1 || v > limit {
			errs = append(errs, fmt.Errorf("%s is %d, want 1 to %d", name, v, limit))
		}
	}
	within("max_position_embeddings", h.context, maxContext)
	within("num_hidden_layers", h.layers, block.MaxLayers)
	within("hidden_size", h.dim, maxWidth)
	within("intermediate_size", h.ffn, maxWidth)
	within("num_attention_heads", h.heads, maxHeads)
	within("num_key_value_heads", h.kvHeads, block.MaxKVHeads)
	within("vocab_size", c.Vocab, maxVocab)
	if !(h.eps > 0 && c.Epsilon < 1) {
		errs = append(errs, fmt.Errorf("rms_norm_eps is %v, want a small positive number", c.Epsilon))
	}
	errs = append(errs, c.checkKind())
	if err := errors.Join(errs...); err != nil {
		return h, err
	}
	if h.headDim = h.dim / h.heads; c.HeadDim != nil {
		h.headDim = *c.HeadDim
	}
	within("head_dim", h.headDim, kernel.MaxHeadDim)
	h.ropeDims = h.headDim
	errs = append(errs, c.readRope(&h), h.check())
	return h, errors.Join(errs...)
}

func (c config) checkKind() error {
	var errs []error
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	refuse(c.Activation != "silu" && c.Activation != "", "hidden_act %q is not supported, only silu", c.Activation)
	refuse(c.AttentionBias || c.MLPBias, "attention_bias and mlp_bias are not supported")
	refuse(c.Rotary != nil && *c.Rotary != 1, "partial_rotary_factor is not supported")
	refuse(c.Quantised != nil, "quantization_config is not supported: use the weights in F32, F16 or BF16")
	refuse(len(c.EOS) > 1, "eos_token_id names %d tokens, only one is supported", len(c.EOS))
	return errors.Join(errs...)
}

func (c config) readRope(h *hparams) error {
	base, scaling := c.RopeBase, c.RopeScaling
	if c.Rope != nil {
		if scaling != nil || base != nil && c.Rope.Base != nil && *base != *c.Rope.Base {
			return errors.New("rope_parameters and what it replaces, rope_scaling and rope_theta, do not agree")
		}
		scaling = c.Rope
		if c.Rope.Base != nil {
			base = c.Rope.Base
		}
	}
	if base != nil {
		if !(*base > 0 && *base <= math.MaxFloat32) {
			return fmt.Errorf("rope_theta is %v, want a positive number", *base)
		}
		h.ropeBase = float32(*base)
	}
	if scaling == nil {
		return nil
	}
	kind := scaling.Type
	if kind == "" {
		kind = scaling.Older
	}
	switch {
	case kind == "default" || kind == "" && scaling.Factor == nil:
		return nil
	case kind != "linear":
		return fmt.Errorf("rope scaling %q is not supported, only linear", kind)
	case scaling.Factor == nil || !(*scaling.Factor > 0 && *scaling.Factor < 1e6):
		return errors.New("the factor of rope scaling is missing or no positive number")
	}
	h.ropeScale = float32(1 / *scaling.Factor)
	return nil
}
