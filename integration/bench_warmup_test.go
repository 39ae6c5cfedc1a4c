package integration

import (
	"encoding/json"
	"os/exec"
	"testing"

	"github.com/kvtier/kvtier/internal/testredis"
)

// The benchmark of warm-ups does what it says, with worker processes and a real server, which it leaves empty. Its figures are not judged here.
func TestBenchWarmup(t *testing.T) {
	srv := testredis.Start(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "bench", "warmup", "--json", "--redis", srv.URL(), "--rounds", "1", "--window", "500ms", "--rate", "20", "--prompts", "13",
		"--prompt-tokens", "32", "--answer-tokens", "2").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var r struct {
		Warmup struct {
			Serving struct {
				Idle, Warming struct{ Requests int }
			}
			Scaling struct {
				Tokens int64
				Ratio  struct{ Median float64 }
				Bound  struct{ Median float64 } `json:"bound_ratio"`
			}
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, c := r.Warmup.Serving, r.Warmup.Scaling
	// How much was warmed in a window is a figure, and nothing on a machine that is busy. That warm-ups compute what they are asked to is in c.Tokens.
	if s.Idle.Requests == 0 || s.Idle.Requests != s.Warming.Requests || c.Tokens != 2*256+13*128 || c.Ratio.Median <= 0 || c.Bound.Median <= 0 {
		t.Errorf("%s", out)
	}
}
