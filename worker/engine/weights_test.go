package engine

import (
	"testing"

	"github.com/kvtier/kvtier/block"
)

func TestManifest(t *testing.T) {
	base := func(m *Manifest) {
		m.Tensor("a", "F16", []int{2, 3}, block.Digest{1})
		m.Tensor("b", "F32", []int{4}, block.Digest{2})
		m.Uint("heads", 4)
		m.Float("base", 10000)
	}
	sum := func(add ...func(m *Manifest)) block.Digest {
		t.Helper()
		var m Manifest
		for _, f := range add {
			f(&m)
		}
		d, err := m.Sum()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := sum(base)
	// A change of this value is a change of every identity there is.
	if got := want.String(); got != "836dfcd41d550e712aca7e4687448d3337afacd75c811a21eb1364dfd51475bc" {
		t.Errorf("the canonical encoding changed: %s", got)
	}
	if got := sum(func(m *Manifest) {
		m.Float("base", 10000)
		m.Tensor("b", "F32", []int{4}, block.Digest{2})
		m.Uint("heads", 4)
		m.Tensor("a", "F16", []int{2, 3}, block.Digest{1})
	}); got != want {
		t.Error("the order of adding matters")
	}
	seen := map[block.Digest]string{want: "base"}
	for name, f := range map[string]func(m *Manifest){
		"another tensor": func(m *Manifest) { m.Tensor("c", "F16", nil, block.Digest{}) },
		// Adapters that are loaded with the weights are tensors and numbers like all others. Those that a request chooses are in the chain
		// of its blocks instead (block.ExtraAdapter).
		"an adapter": func(m *Manifest) {
			m.Tensor("a.lora_a", "F16", []int{2, 1}, block.Digest{4})
			m.Tensor("a.lora_b", "F16", []int{1, 3}, block.Digest{5})
			m.Float("adapter.lora.alpha", 16)
		},
		"the adapter with another scale": func(m *Manifest) {
			m.Tensor("a.lora_a", "F16", []int{2, 1}, block.Digest{4})
			m.Tensor("a.lora_b", "F16", []int{1, 3}, block.Digest{5})
			m.Float("adapter.lora.alpha", 32)
		},
		"another number": func(m *Manifest) { m.Uint("kv", 1) },
		"of other kind":  func(m *Manifest) { m.Float("kv", 1) },
		"as text":        func(m *Manifest) { m.String("kv", "\x01\x00\x00\x00\x00\x00\x00\x00") },
	} {
		got := sum(base, f)
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[got] = name
	}
	for name, f := range map[string]func(m *Manifest){
		"name":   func(m *Manifest) { m.Tensor("x", "F16", []int{2, 3}, block.Digest{1}) },
		"dtype":  func(m *Manifest) { m.Tensor("a", "BF16", []int{2, 3}, block.Digest{1}) },
		"shape":  func(m *Manifest) { m.Tensor("a", "F16", []int{3, 2}, block.Digest{1}) },
		"rank":   func(m *Manifest) { m.Tensor("a", "F16", []int{6}, block.Digest{1}) },
		"digest": func(m *Manifest) { m.Tensor("a", "F16", []int{2, 3}, block.Digest{3}) },
		"split":  func(m *Manifest) { m.Tensor("aF", "16", []int{2, 3}, block.Digest{1}) },
	} {
		got := sum(f)
		if other, ok := seen[got]; ok {
			t.Errorf("another %s has the digest of %s", name, other)
		}
		seen[got] = name
	}
}

func TestManifestRefuses(t *testing.T) {
	for name, f := range map[string]func(m *Manifest){
		"nothing": func(m *Manifest) {},
		"a tensor twice": func(m *Manifest) {
			m.Tensor("a", "F16", nil, block.Digest{})
			m.Tensor("a", "F32", nil, block.Digest{})
		},
		"a parameter twice": func(m *Manifest) {
			m.Tensor("a", "F16", nil, block.Digest{})
			m.Uint("n", 1)
			m.Float("n", 1)
		},
	} {
		var m Manifest
		f(&m)
		if _, err := m.Sum(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
