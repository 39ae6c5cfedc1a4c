package llama

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/kvtier/kvtier/models"
)

// BenchmarkAgainstLlamaCPP runs llama.cpp's llama-bench and this engine in turns on the shipped model, with as many threads each, and reports
// medians of both and their ratio. KVTIER_LLAMA_BENCH is the path of llama-bench; it must see the directory for temporary files under
// the same path. docs/ENGINE-LLAMA.md has the command.
func BenchmarkAgainstLlamaCPP(b *testing.B) {
	tool := os.Getenv("KVTIER_LLAMA_BENCH")
	if tool == "" {
		b.Skip("KVTIER_LLAMA_BENCH is not set to the path of llama-bench")
	}
	data, err := models.FS.ReadFile(models.Default)
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), models.Default)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		b.Fatal(err)
	}
	for _, threads := range []int{1, 2} {
		m := openShipped(b, Options{Threads: threads})
		for _, c := range []comparison{{"prefill", 1000, 0, 0}, {"decode", 0, 100, 0}, {"decode", 0, 100, 950}} {
			b.Run(fmt.Sprintf("threads=%d/%s/context=%d", threads, c.name, c.depth), func(b *testing.B) {
				var ours, theirs []float64
				for b.Loop() {
					for range rounds {
						theirs = append(theirs, c.theirs(b, tool, path, threads))
						ours = append(ours, c.ours(b, m))
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(ours), "tokens/s")
				b.ReportMetric(median(theirs), "llama.cpp-tokens/s")
				b.ReportMetric(median(ours)/median(theirs), "ratio")
			})
		}
	}
}

// rounds is how often both take turns.
const rounds = 5

// comparison is work for both: a prompt, or tokens generated after depth others.
type comparison struct {
	name                  string
	prompt, decode, depth int
}

// theirs is llama-bench's tokens/s, the better of with and without flash attention; each is warmed up by llama-bench itself.
func (c comparison) theirs(b *testing.B, tool, model string, threads int) (best float64) {
	for _, flash := range []string{"0", "1"} {
		cmd := exec.CommandContext(b.Context(), tool, "-m", model, "-t", strconv.Itoa(threads), "-fa", flash, "-r", "1", "-o", "json",
			"-p", strconv.Itoa(c.prompt), "-n", strconv.Itoa(c.decode), "-d", strconv.Itoa(c.depth))
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		var results []struct {
			Rate float64 `json:"avg_ts"`
		}
		if err == nil {
			err = json.Unmarshal(out, &results)
		}
		if err != nil || len(results) != 1 {
			b.Fatalf("llama-bench: %v\n%s%s", err, out, errs.Bytes())
		}
		best = max(best, results[0].Rate)
	}
	return best
}

// ours is the better of two runs, since theirs is the better of two as well.
func (c comparison) ours(b *testing.B, m *Model) (best float64) {
	tokens := randomTokens(rand.New(rand.NewPCG(1, 1)), max(c.prompt, c.depth+c.decode), m.hparams.vocab)
	for range 2 {
		s, err := m.NewSequence()
		if err != nil {
			b.Fatal(err)
		}
		if c.depth > 0 {
			if _, err := s.Prefill(b.Context(), tokens[:c.depth]); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		if c.prompt > 0 {
			_, err = s.Prefill(b.Context(), tokens)
		}
		for i := 0; i < c.decode && err == nil; i++ {
			_, err = s.Prefill(b.Context(), tokens[c.depth+i:][:1])
		}
		if err != nil {
			b.Fatal(err)
		}
		best = max(best, float64(c.prompt+c.decode)/time.Since(start).Seconds())
		s.Close()
	}
	return best
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
