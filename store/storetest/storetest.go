// Package storetest holds implementations of store.Store to their contract: a conformance suite and benchmarks for back ends and
// decorators, and Faulty, a store that fails on command, for the tests of what stands above a store.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/kvtier/kvtier/store"
)

// Harness says how to get at the store under test.
type Harness struct {
	// Open returns an empty store. The suite closes it.
	Open func(tb testing.TB) store.Store
	// Advance lets d pass on the store's clock. Nil: the suite sleeps.
	Advance func(d time.Duration)
	// MaxTTLJitter is by which part of itself the store may lengthen a TTL, such as 0.1.
	MaxTTLJitter float64
	// NoPins says that the store is not meant to be store.Pinner; otherwise it must be, itself or by Unwrap.
	NoPins bool
	// NoPrefixed says that the store is not meant to be store.Prefixed, Sweeper, Leaser and Discarder; otherwise it must be all of them,
	// itself or by Unwrap.
	NoPrefixed bool
}

// cases is the suite, in the order of the contract.
var cases = []struct {
	name string
	run  func(*testing.T, *fixture)
}{
	{"EmptyBatch", testEmptyBatch},
	{"LeadCountsWithoutGap", testLead},
	{"LeadOfManyKeys", testLeadMany},
	{"Duplicates", testDuplicates},
	{"GetGoesOnAfterMiss", testGetMiss},
	{"GetKeepsOrder", testGetOrder},
	{"GetTooLarge", testGetTooLarge},
	{"GetExactBuffer", testGetExact},
	{"GetBreak", testGetBreak},
	{"GetTwice", testGetTwice},
	{"GetRefusesLengths", testGetInvalid},
	{"GetLeavesOtherMemoryAlone", testGetBounds},
	{"EmptyValue", testEmptyValue},
	{"BinaryKeysAndValues", testBinary},
	{"LargestValue", testLargest},
	{"PutRefusesTooLarge", testPutTooLarge},
	{"PutRefusesInvalid", testPutInvalid},
	{"PutOverwrites", testOverwrite},
	{"PutCopies", testPutCopies},
	{"TTL", testTTL},
	{"Delete", testDelete},
	{"CancelledStartsNothing", testCancelled},
	{"Ping", testPing},
	{"Concurrent", testConcurrent},
	{"DiscardDeletesWhatIsBad", testDiscard},
	{"DiscardLeavesAnotherValueAlone", testDiscardRace},
	{"DiscardIsCareful", testDiscardCareful},
	{"PrefixCountAndDelete", testPrefix},
	{"PrefixIsNoPattern", testPrefixGlob},
	{"PrefixCancelled", testPrefixCancelled},
	{"SweepManyPrefixes", testSweep},
	{"SweepResumes", testSweepResumes},
	{"SweepIsCareful", testSweepCareful},
	{"PinOutlivesTTL", testPin},
	{"PinCountsWithoutGap", testPinLead},
	{"PinIsCareful", testPinCareful},
	{"LeaseIsHeldByOne", testLease},
	{"LeaseContended", testLeaseOnce},
	{"LeaseRefuses", testLeaseRefuses},
	{"Closed", testClosed},
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			t.Cleanup(cancel)
			s := h.Open(t)
			t.Cleanup(func() { _ = s.Close() })
			c.run(t, &fixture{T: t, Harness: h, ctx: ctx, s: s})
		})
	}
}

// fixture is what every case gets.
type fixture struct {
	*testing.T
	Harness
	ctx context.Context
	s   store.Store
}

const ttl = time.Minute

// put stores values under keys, pairwise.
func (f *fixture) put(pairs ...string) {
	f.Helper()
	var items []store.Item
	for i := 0; i < len(pairs); i += 2 {
		items = append(items, store.Item{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	if err := f.s.Put(f.ctx, items, ttl); err != nil {
		f.Fatalf("Put: %v", err)
	}
}

// get returns the value under key.
func (f *fixture) get(key string) (string, error) {
	f.Helper()
	buf := make([]byte, 1<<10)
	for n, err := range f.s.Get(f.ctx, []string{key}, [][]byte{buf}) {
		return string(buf[:n]), err
	}
	f.Fatal("Get yielded nothing")
	return "", nil
}

func (f *fixture) wantValue(key, want string) {
	f.Helper()
	if got, err := f.get(key); err != nil || got != want {
		f.Errorf("Get(%q) = %q, %v, want %q", key, got, err, want)
	}
}

func (f *fixture) wantLead(want int, keys ...string) {
	f.Helper()
	if got, err := f.s.Lead(f.ctx, keys); err != nil || got != want {
		f.Errorf("Lead(%q) = %d, %v, want %d", keys, got, err, want)
	}
}

func (f *fixture) wantErr(what string, err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Errorf("%s: error %v, want %v", what, err, want)
	}
	if want != nil && store.IsFault(err) {
		f.Errorf("%s: IsFault(%v), which is an answer", what, err)
	}
}

// pass lets d go by for the store.
func (f *fixture) pass(d time.Duration) {
	if f.Advance != nil {
		f.Advance(d)
		return
	}
	time.Sleep(d)
}

// yields collects what Get yields.
func yields(seq iter.Seq2[int, error]) (lens []int, errs []error) {
	for n, err := range seq {
		lens, errs = append(lens, n), append(errs, err)
	}
	return lens, errs
}

// pattern returns n bytes that no other seed gives.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func buffers(n, valueBytes int) [][]byte {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, valueBytes+store.Spare)
	}
	return bufs
}

// batch makes n items and their keys.
func batch(prefix string, n, valueBytes int) (items []store.Item, keys []string) {
	for i := range n {
		keys = append(keys, fmt.Sprintf("%s%05d", prefix, i))
		items = append(items, store.Item{Key: keys[i], Value: pattern(i, valueBytes)})
	}
	return items, keys
}

// checkRead reads keys and compares with items.
func (f *fixture) checkRead(items []store.Item, keys []string, bufs [][]byte) {
	f.Helper()
	i := 0
	for n, err := range f.s.Get(f.ctx, keys, bufs) {
		if err != nil {
			f.Fatalf("Get of key %d: %v", i, err)
		}
		if !bytes.Equal(bufs[i][:n], items[i].Value) {
			f.Fatalf("Get of key %d: %d bytes differ from the %d that were put", i, n, len(items[i].Value))
		}
		i++
	}
	if i != len(keys) {
		f.Fatalf("Get yielded %d times, want %d", i, len(keys))
	}
}
