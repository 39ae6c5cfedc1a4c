package warmup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runeTokens makes a token of every character.
type runeTokens struct{}

func (runeTokens) Encode(text string) (tokens []int32) {
	for _, r := range text {
		tokens = append(tokens, r)
	}
	return tokens
}

func planOf(t testing.TB, s Source, blockTokens, sortBytes int) *Plan {
	t.Helper()
	p, err := NewPlan(context.Background(), PlanOptions{Source: s, Encoder: LocalEncoder{Tokenizer: runeTokens{}}, BlockTokens: blockTokens, SortBytes: sortBytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// Every block of every prompt belongs to exactly one task, and what a task builds on comes before it. Checked against a set of prefixes.
func TestEveryBlockIsInOneTask(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		prompts := rapid.SliceOfN(rapid.StringMatching(`[ab]{1,14}`), 1, 60).Draw(r, "prompts")
		const bt = 2
		dir, err := os.MkdirTemp("", "plan")
		if err != nil {
			r.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "p.txt")
		if err := os.WriteFile(path, []byte(strings.Join(prompts, "\n")), 0o600); err != nil {
			r.Fatal(err)
		}
		s, _, err := OpenSource([]string{path}, false, nil)
		if err != nil {
			r.Fatal(err)
		}
		// A few hundred bytes hold a handful of records: the sort goes through many runs.
		p, err := NewPlan(context.Background(), PlanOptions{Source: s, Encoder: LocalEncoder{Tokenizer: runeTokens{}}, BlockTokens: bt, SortBytes: rapid.IntRange(200, 4000).Draw(r, "sort bytes")})
		if err != nil {
			r.Fatal(err)
		}
		defer p.Close()

		want := map[string]bool{}
		blocks, short := 0, 0
		for _, x := range prompts {
			n := len(x) / bt
			blocks += n
			if n == 0 {
				short++
			}
			for i := 1; i <= n; i++ {
				want[x[:i*bt]] = true
			}
		}
		if st := p.Stats; st.UniqueBlocks != int64(len(want)) || st.Blocks != int64(blocks) || st.TooShort != int64(short) || st.Prompts != int64(len(prompts)) {
			r.Fatalf("stats %+v, want %d unique of %d blocks", st, len(want), blocks)
		}
		ended := map[*Task]bool{}
		final, id := 0, 0
		for task, err := range p.tasks() {
			if err != nil {
				r.Fatal(err)
			}
			if task.ID != id {
				r.Fatalf("task %d is numbered %d", id, task.ID)
			}
			id++
			if task.parent != nil && !ended[task.parent] {
				r.Fatal("a task comes before what it builds on")
			}
			ended[task] = true
			req, err := p.request(context.Background(), task)
			if err != nil {
				r.Fatal(err)
			}
			var text strings.Builder
			for _, tok := range req.Tokens {
				text.WriteString(string(tok))
			}
			have := 0 // what its ancestors, together, have of this prompt
			for a := task.parent; a != nil; a = a.parent {
				have = max(have, a.To)
			}
			if have < task.From {
				r.Fatalf("task %d builds on %d blocks, its ancestors have %d", task.ID, task.From, have)
			}
			for i := task.From + 1; i <= task.To; i++ {
				if !want[text.String()[:i*bt]] {
					r.Fatalf("%q is computed twice, or by nobody's wish", text.String()[:i*bt])
				}
				delete(want, text.String()[:i*bt])
			}
			if task.Final {
				final++
			}
		}
		if len(want) > 0 || final != len(prompts)-short {
			r.Fatalf("%d blocks are in no task; %d of %d prompts end in one", len(want), final, len(prompts)-short)
		}
	})
}

func TestOrderOfGroups(t *testing.T) {
	s := sourceOf(t, "m.jsonl", strings.Join([]string{
		`{"prompt":"zzzz1111"}`,                    // alone
		`{"prompt":"aaaabbbb1"}`,                   // two that share one block, and one of the two twice as long
		`{"prompt":"aaaacccc1"}`,                   //
		`{"prompt":"ddddeeeeffff1111"}`,            // two that share three
		`{"prompt":"ddddeeeeffff2222"}`,            //
		`{"prompt":"qqqq1111","priority":1}`,       // first
		`{"prompt":"yyyy1111","expect_hits":1000}`, // before zzzz
		`{"prompt":"aaaacccc1","tenant":"x"}`,      // shares nothing: another tenant
	}, "\n"))
	p := planOf(t, s, 4, 0)
	var got []string
	for task, err := range p.tasks() {
		if err != nil {
			t.Fatal(err)
		}
		req, err := p.request(t.Context(), task)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		text.WriteString(req.Salt)
		for _, tok := range req.Tokens {
			text.WriteString(string(tok))
		}
		got = append(got, fmt.Sprintf("%s[%d:%d]", text.String(), task.From, task.To))
	}
	want := []string{
		"qqqq1111[0:2]",
		"ddddeeeeffff[0:3]", "ddddeeeeffff1111[3:4]", "ddddeeeeffff2222[3:4]",
		"aaaa[0:1]", "aaaacccc[1:2]", "aaaabbbb[1:2]", // siblings stand in the order of their hashes
		"yyyy1111[0:2]",
	}
	if !slices.Equal(got[:len(want)], want) || len(got) != len(want)+2 {
		t.Errorf("tasks:\n%s\nwant, and two more:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestBrokenLinesAreCountedOrStop(t *testing.T) {
	s := sourceOf(t, "m.jsonl", `{"prompt":"aaaa"}`+"\n{\n"+`{"prompt":"`+strings.Repeat("a", 50)+`"}`)
	var named []string
	o := PlanOptions{Source: s, Encoder: LocalEncoder{Tokenizer: runeTokens{}}, BlockTokens: 4, ContextTokens: 49, Broken: func(err error) { named = append(named, err.Error()) }}
	p, err := NewPlan(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Stats.Prompts != 1 || p.Stats.Broken != 2 || len(named) != 2 || !strings.Contains(strings.Join(named, " "), "line 2") || !strings.Contains(strings.Join(named, " "), "50 tokens") {
		t.Errorf("stats %+v, named %q", p.Stats, named)
	}
	o.Strict = true
	if _, err := NewPlan(t.Context(), o); !errors.Is(err, ErrLine) {
		t.Errorf("strict: %v", err)
	}
}

func TestAChangedManifestIsNoticed(t *testing.T) {
	s := sourceOf(t, "p.txt", "aaaabbbb\n")
	p := planOf(t, s, 4, 0)
	if err := os.WriteFile(s.Files[0].Path, []byte("aaaacccc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for task, err := range p.tasks() {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.request(t.Context(), task); !errors.Is(err, ErrChanged) {
			t.Errorf("%v, want ErrChanged", err)
		}
	}
}

// BenchmarkPlan plans a manifest of 100,000 lists of tokens, which share prefaces; MB/s are of the manifest.
func BenchmarkPlan(b *testing.B) {
	path := filepath.Join(b.TempDir(), "m.jsonl")
	size := writeTokens(b, path, 100_000)
	s, _, err := OpenSource([]string{path}, false, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		p := planOf(b, s, 16, 0)
		if p.Stats.Prompts != 100_000 {
			b.Fatal(p.Stats)
		}
	}
}

// writeTokens writes n prompts of 64 to 127 tokens of which the first 48 are one of 500 prefaces.
func writeTokens(tb testing.TB, path string, n int) int64 {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for i := range n {
		tokens := make([]int32, 64+i%64)
		for j := range tokens {
			if tokens[j] = int32(i % 500 * (j + 1) % 4000); j >= 48 {
				tokens[j] = int32((i*31 + j*j) % 4000)
			}
		}
		if err := enc.Encode(map[string]any{"tokens": tokens}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	return st.Size()
}
