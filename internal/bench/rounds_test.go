package bench_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/bench"
)

func TestRoundsTakeTurns(t *testing.T) {
	var order strings.Builder
	method := func(name string, bytes int64) bench.Method {
		return bench.Method{Name: name, Do: func(context.Context) (bench.Work, error) {
			order.WriteString(name)
			return bench.Work{Bytes: bytes, Ops: 2}, nil
		}}
	}
	steps := 0
	got, err := bench.Rounds(t.Context(), bench.Plan{Rounds: 3}, []bench.Method{method("a", 10), method("b", 20)}, func() { steps++ })
	if err != nil {
		t.Fatal(err)
	}
	if want := "ab" + "ab" + "ba" + "ab"; order.String() != want {
		t.Errorf("order %q, want %q: one unmeasured call each, then every round begins with another method", order.String(), want)
	}
	if steps != 6 || len(got) != 2 || len(got[0].Samples) != 3 || got[1].Name != "b" {
		t.Errorf("%d steps, series %+v", steps, got)
	}
	if s := got[1].Samples[0]; s.Bytes != 20 || s.Ops != 2 {
		t.Errorf("a slice without time made more than one call: %+v", s)
	}
}

func TestRatiosAreTakenWithinARound(t *testing.T) {
	series := func(seconds ...float64) (s bench.Series) {
		for _, x := range seconds {
			s.Samples = append(s.Samples, bench.Sample{Seconds: x, Bytes: 1e9, Ops: 1})
		}
		return s
	}
	// A machine that is slow in the second and third round is slow for both.
	ours, raw := series(2, 20, 30), series(1, 10, 15)
	if r := ours.Ratio(raw); r != (bench.Range{Median: 0.5, Min: 0.5, Max: 0.5}) {
		t.Errorf("ratio %+v, want 0.5 throughout", r)
	}
	if r := raw.Of(bench.Sample.GBps); r.Median != 0.1 || r.Max != 1 {
		t.Errorf("rates %+v", r)
	}
	if r := series(1, 2, 4, 8).Of(bench.Sample.NsPerOp); r.Median != 3e9 {
		t.Errorf("median of an even number %v, want 3e9", r.Median)
	}
}

func TestRoundsEndWithTheFirstError(t *testing.T) {
	sick := errors.New("sick")
	for name, do := range map[string]func(context.Context) (bench.Work, error){
		"method fails":  func(context.Context) (bench.Work, error) { return bench.Work{Ops: 1}, sick },
		"nothing done":  func(context.Context) (bench.Work, error) { return bench.Work{}, nil },
		"ctx has ended": func(context.Context) (bench.Work, error) { return bench.Work{Ops: 1}, nil },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if name == "ctx has ended" {
			cancel()
		}
		if _, err := bench.Rounds(ctx, bench.Plan{Rounds: 1}, []bench.Method{{Name: "m", Do: do}}, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
		cancel()
	}
}

func TestPlanForKeepsTheTime(t *testing.T) {
	for _, d := range []time.Duration{0, 50 * time.Millisecond, time.Second, time.Minute} {
		for _, n := range []int{1, 5, 9} {
			p := bench.PlanFor(d, n)
			if total := p.Slice * time.Duration(p.Rounds*n); p.Rounds < 1 || p.Rounds > 5 || total > d {
				t.Errorf("%v for %d methods: %+v", d, n, p)
			}
		}
	}
}
