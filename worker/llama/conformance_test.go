package llama_test

import (
	"bytes"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/llama/llamatest"
)

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		config llamatest.Config
		opts   llama.Options
	}{
		"mha":             {config: llamatest.Config{Heads: 2, KVHeads: 2}},
		"gqa":             {config: llamatest.Config{Heads: 6, KVHeads: 2, HeadDim: 32}},
		"mqa":             {config: llamatest.Config{Heads: 4, KVHeads: 1, HeadDim: 80}},
		"untied q8_0":     {config: llamatest.Config{HeadDim: 32, Type: 8, Untied: true}},
		"q4_k":            {config: llamatest.Config{Heads: 4, HeadDim: 64, FFN: 256, Layers: 1, Type: 12}},
		"blocks of 5":     {opts: llama.Options{BlockTokens: 5}},
		"long blocks":     {config: llamatest.Config{Context: 2048}, opts: llama.Options{BlockTokens: 300}},
		"several parts":   {config: llamatest.Config{Layers: 9, Heads: 8, KVHeads: 8, HeadDim: 64, Dim: 8, FFN: 8, Context: 100}},
		"shorter context": {config: llamatest.Config{Type: 30}, opts: llama.Options{ContextTokens: 100}},
	} {
		t.Run(name, func(t *testing.T) {
			file := llamatest.Random(c.config).Bytes() // once: drawing the weights takes longer than the tests
			enginetest.Run(t, func(t *testing.T) engine.Engine {
				m, err := llama.OpenReader(bytes.NewReader(file), int64(len(file)), name, c.opts)
				if err != nil {
					t.Fatal(err)
				}
				return m
			})
		})
	}
	t.Run("shipped", func(t *testing.T) {
		enginetest.Run(t, func(t *testing.T) engine.Engine {
			return openEmbedded(t, models.Default, llama.Options{ContextTokens: 300})
		})
	})
}
