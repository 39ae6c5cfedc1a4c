package engine

import (
	"math"
	"testing"
)

func TestGreedy(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		name   string
		logits []float32
		want   int32
	}{
		{"largest", []float32{1, 3, 2}, 1},
		{"first of equals", []float32{1, 3, 3}, 1},
		{"negative", []float32{-3, -1, -2}, 1},
		{"past NaN", []float32{nan, -5, nan, -4, nan}, 3},
		{"only NaN", []float32{nan, nan}, 0},
		{"infinity", []float32{0, inf, nan}, 1},
		{"minus infinity", []float32{-inf, -inf}, 0},
		{"none", nil, -1},
	} {
		for _, temperature := range []float64{0, -1, math.NaN()} {
			if got := NewSampler(SampleOptions{Temperature: temperature}).Sample(c.logits); got != c.want {
				t.Errorf("%s, temperature %v: %d, want %d", c.name, temperature, got, c.want)
			}
		}
	}
}

func TestSampleFollowsProbabilities(t *testing.T) {
	logits := []float32{float32(math.Log(1)), float32(math.Log(2)), float32(math.NaN()), float32(math.Log(5)), float32(math.Inf(-1))}
	for _, c := range []struct {
		name string
		opts SampleOptions
		want []float64
	}{
		{"plain", SampleOptions{Temperature: 1}, []float64{1. / 8, 2. / 8, 0, 5. / 8, 0}},
		{"top_p 1", SampleOptions{Temperature: 1, TopP: 1}, []float64{1. / 8, 2. / 8, 0, 5. / 8, 0}},
		{"hotter", SampleOptions{Temperature: 2}, []float64{0.2146, 0.3034, 0, 0.4798, 0}},
		{"cold", SampleOptions{Temperature: 1e-9}, []float64{0, 0, 0, 1, 0}},
		{"top_p keeps two", SampleOptions{Temperature: 1, TopP: 0.7}, []float64{0, 2. / 7, 0, 5. / 7, 0}},
		{"top_p keeps one", SampleOptions{Temperature: 1, TopP: 0.01}, []float64{0, 0, 0, 1, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Seed = 42
			s := NewSampler(c.opts)
			const draws = 20000
			counts := make([]int, len(logits))
			for range draws {
				counts[s.Sample(logits)]++
			}
			for i, want := range c.want {
				if got := float64(counts[i]) / draws; math.Abs(got-want) > 0.015 {
					t.Errorf("token %d: %.3f of draws, want %.3f", i, got, want)
				}
			}
		})
	}
}

func TestSampleIsDeterministic(t *testing.T) {
	logits := make([]float32, 100)
	draw := func(seed uint64) (tokens [50]int32) {
		s := NewSampler(SampleOptions{Temperature: 1, Seed: seed})
		for i := range tokens {
			tokens[i] = s.Sample(logits)
		}
		return tokens
	}
	if first, again := draw(1), draw(1); first != again {
		t.Error("equal seeds give different tokens")
	}
	if draw(1) == draw(2) {
		t.Error("different seeds give equal tokens")
	}
}

func FuzzSample(f *testing.F) {
	f.Add(0.5, 0.9, float32(1), float32(2))
	f.Add(1e-300, 1e-300, float32(math.NaN()), float32(math.Inf(1)))
	f.Fuzz(func(t *testing.T, temperature, topP float64, a, b float32) {
		got := NewSampler(SampleOptions{Temperature: temperature, TopP: topP}).Sample([]float32{a, b})
		if got < 0 || got > 1 {
			t.Fatalf("token %d of two logits", got)
		}
		if logits := [2]float32{a, b}; logits[got] != logits[got] && logits[1-got] == logits[1-got] {
			t.Fatalf("drew NaN from %v", logits)
		}
	})
}
