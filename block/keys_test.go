package block_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/block"
)

func TestKeysOfAnEpochShareItsPrefix(t *testing.T) {
	v := testID.Variant()
	key := block.Key(v, 42, block.Hash{1}, 3)
	if !strings.HasPrefix(key, block.EpochPrefix(v, 42)) || !strings.HasPrefix(key, block.VariantPrefix(v)) {
		t.Errorf("key %s lacks its prefix", key)
	}
	if strings.HasPrefix(key, block.EpochPrefix(v, 4)) {
		t.Errorf("key of epoch 42 %s has the prefix of epoch 4", key)
	}
}

// hashes are n different ones.
func hashes(n int) []block.Hash {
	all := make([]block.Hash, n)
	for i := range all {
		all[i] = block.Hash{byte(i), byte(i >> 8), 255, 7: 62, 31: byte(i * 7)}
	}
	return all
}

// Names that are made together are those made one by one, whatever stands before them and however many digits a part has.
func TestKeysAreThoseOfKey(t *testing.T) {
	v := testID.Variant()
	for _, parts := range []int{0, 1, 2, 9, 10, 11, 100, 101, 1024} {
		for _, epoch := range []block.Epoch{0, 7, 1_700_000_000_000, 1<<64 - 1} {
			k := block.NewKeys(v, epoch, parts)
			want := []string{"before"}
			for _, h := range hashes(3) {
				for p := range parts {
					want = append(want, block.Key(v, epoch, h, p))
					if got := k.Key(h, p); got != want[len(want)-1] {
						t.Fatalf("Keys.Key is %s, want %s", got, want[len(want)-1])
					}
				}
			}
			if got := k.Append([]string{"before"}, hashes(3)); !slices.Equal(got, want) {
				t.Fatalf("%d parts of epoch %d: got %d names, not the %d of Key", parts, epoch, len(got), len(want))
			}
		}
	}
}

// A probe of 32,768 tokens asks for 4,096 names. They are written in one pass, into one string and one slice, and the variant is hashed once.
func TestKeysOfAProbeAllocateTwice(t *testing.T) {
	v, all := testID.Variant(), hashes(2048)
	for _, parts := range []int{1, 2, 12, 101} {
		if n := testing.AllocsPerRun(10, func() { _ = block.NewKeys(v, 1_700_000_000_000, parts).Append(nil, all) }); n > 3 {
			t.Errorf("%d parts: %v allocations, want 3 at most", parts, n)
		}
		k, dst := block.NewKeys(v, 1_700_000_000_000, parts), make([]string, 0, len(all)*parts)
		if n := testing.AllocsPerRun(10, func() { dst = k.Append(dst[:0], all) }); n > 1 {
			t.Errorf("%d parts into a slice that is there: %v allocations, want 1", parts, n)
		}
	}
}

func ExampleKey() {
	fmt.Println(block.Key(block.Variant{1, 2, 3}, 7, block.Hash{}, 0))
	// Output: kvt1:d:aebagaaaaaaaaaaa:7:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA:0
}

// A block of two parts, as a store is asked for it.
func ExampleKeys() {
	names := block.NewKeys(block.Variant{1, 2, 3}, 7, 2)
	for _, key := range names.Append(nil, []block.Hash{{}}) {
		fmt.Println(key)
	}
	// Output:
	// kvt1:d:aebagaaaaaaaaaaa:7:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA:0
	// kvt1:d:aebagaaaaaaaaaaa:7:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA:1
}

// BenchmarkKeys names what a probe of 2,048 blocks of two parts asks for: together, and one by one with the variant derived for each.
func BenchmarkKeys(b *testing.B) {
	all := hashes(2048)
	b.Run("together", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = block.NewKeys(testID.Variant(), 1_700_000_000_000, 2).Append(nil, all)
		}
	})
	b.Run("one by one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			dst := make([]string, 2*len(all))
			for i, h := range all {
				for p := range 2 {
					dst[2*i+p] = block.Key(testID.Variant(), 1_700_000_000_000, h, p)
				}
			}
		}
	})
}
