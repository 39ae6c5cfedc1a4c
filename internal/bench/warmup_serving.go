package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/internal/pause"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
)

// ServingResult compares requests to a worker that does nothing else with requests to one that warms as much as it can. JSON names are stable.
type ServingResult struct {
	Rounds       int     `json:"rounds"` // of one window of each kind
	WindowS      float64 `json:"window_s"`
	Rate         float64 `json:"rate"` // requests per second
	PromptTokens int     `json:"prompt_tokens"`
	AnswerTokens int     `json:"answer_tokens"`
	Threads      int     `json:"threads"` // of the worker

	Idle    Latency      `json:"idle"`
	Warming Latency      `json:"warming"`
	Ratio   LatencyRatio `json:"ratio"` // warming to idle
	// Noise is every second idle window to the others: what a ratio of 1 looks like on this machine.
	Noise LatencyRatio `json:"noise"`
	// WarmedPerS is how many tokens were warmed per second of windows beside the requests, AlonePerS how many without them.
	WarmedPerS float64 `json:"warmed_tokens_per_s"`
	AlonePerS  float64 `json:"alone_tokens_per_s"`
}

// Latency is of requests, from when each was due.
type Latency struct {
	Requests   int     `json:"requests"`
	TTFTP50Ms  float64 `json:"ttft_p50_ms"`
	TTFTP99Ms  float64 `json:"ttft_p99_ms"`
	TotalP50Ms float64 `json:"total_p50_ms"`
	TotalP99Ms float64 `json:"total_p99_ms"`
}

// LatencyRatio divides the figures of one Latency by those of another.
type LatencyRatio struct {
	TTFTP50  float64 `json:"ttft_p50"`
	TTFTP99  float64 `json:"ttft_p99"`
	TotalP50 float64 `json:"total_p50"`
	TotalP99 float64 `json:"total_p99"`
}

// timing is one request.
type timing struct{ ttft, total time.Duration }

func latencyOf(windows [][]timing) Latency {
	var ttft, total []float64
	for _, w := range windows {
		for _, t := range w {
			ttft, total = append(ttft, ms(t.ttft)), append(total, ms(t.total))
		}
	}
	if len(ttft) == 0 {
		return Latency{}
	}
	return Latency{len(ttft), quantile(ttft, 0.5), quantile(ttft, 0.99), quantile(total, 0.5), quantile(total, 0.99)}
}

func (l Latency) to(base Latency) LatencyRatio {
	if l.Requests == 0 || base.Requests == 0 {
		return LatencyRatio{}
	}
	return LatencyRatio{l.TTFTP50Ms / base.TTFTP50Ms, l.TTFTP99Ms / base.TTFTP99Ms, l.TotalP50Ms / base.TotalP50Ms, l.TotalP99Ms / base.TotalP99Ms}
}

// settle is how long nothing happens between windows: what the one before has left to store is stored.
const settle = 300 * time.Millisecond

// serving sends the same arrivals in both windows of a pair, in turns idle or warming first.
func serving(ctx context.Context, o WarmupOptions) (r ServingResult, err error) {
	workers, info, stop, err := o.startWarm(ctx, 1, runtime.NumCPU())
	defer stop()
	if err != nil {
		return r, err
	}
	b := &servingBench{o: o, info: info, worker: workers[0], random: rand.New(rand.NewPCG(o.Seed, 1)), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	defer b.http.CloseIdleConnections()
	if b.manifest, err = warmManifest(warmPrompts(b.random, 200, 10, 256, 128)); err != nil {
		return r, err
	}
	if _, err := b.window(ctx, b.arrivals(), false); err != nil { // unmeasured
		return r, err
	}
	var idle, warming [][]timing
	for round := range o.Rounds {
		arrivals := b.arrivals()
		for turn := range 2 {
			warm := (round+turn)%2 == 1
			window, err := b.window(ctx, arrivals, warm)
			if err != nil {
				return r, err
			}
			if warm {
				warming = append(warming, window)
			} else {
				idle = append(idle, window)
			}
			o.Step()
		}
	}
	warmed := b.warmed
	if _, err := b.window(ctx, nil, true); err != nil {
		return r, err
	}
	r = ServingResult{Rounds: o.Rounds, WindowS: o.Window.Seconds(), Rate: o.Rate, PromptTokens: o.PromptTokens, AnswerTokens: o.AnswerTokens, Threads: runtime.NumCPU(),
		Idle: latencyOf(idle), Warming: latencyOf(warming), WarmedPerS: float64(warmed) / (o.Window.Seconds() * float64(o.Rounds)),
		AlonePerS: float64(b.warmed-warmed) / o.Window.Seconds()}
	r.Ratio = r.Warming.to(r.Idle)
	var halves [2][][]timing
	for i, w := range idle {
		halves[i%2] = append(halves[i%2], w)
	}
	if o.Rounds > 1 {
		r.Noise = latencyOf(halves[1]).to(latencyOf(halves[0]))
	}
	return r, nil
}

type servingBench struct {
	o        WarmupOptions
	info     worker.WarmInfo
	worker   *warmup.Remote
	random   *rand.Rand
	http     *http.Client
	manifest string
	tenants  int
	warmed   int64 // tokens
}

// arrivals draws when requests are due: at random, as many clients send them.
func (b *servingBench) arrivals() (at []time.Duration) {
	for t := time.Duration(0); ; {
		if t += time.Duration(b.random.ExpFloat64() / b.o.Rate * float64(time.Second)); t >= b.o.Window {
			return at
		}
		at = append(at, t)
	}
}

// window sends requests as they are due, and has the worker warm meanwhile, or not.
func (b *servingBench) window(ctx context.Context, arrivals []time.Duration, warm bool) (all []timing, err error) {
	prompts := make([][]int32, len(arrivals))
	for i := range prompts {
		prompts[i] = randomTokens(b.random, b.o.PromptTokens)
	}
	runtime.GC()
	if err := pause.For(ctx, settle); err != nil {
		return nil, err
	}
	start := time.Now()
	warmCtx, end := context.WithTimeout(ctx, b.o.Window)
	defer end()
	var warmErr error
	var others sync.WaitGroup
	if warm {
		others.Go(func() { warmErr = b.warm(warmCtx) })
	}
	all, failed := make([]timing, len(arrivals)), make([]error, len(arrivals))
	for i, at := range arrivals {
		if err := pause.For(ctx, time.Until(start.Add(at))); err != nil {
			end()
			others.Wait()
			return nil, err
		}
		others.Go(func() { all[i], failed[i] = b.ask(ctx, prompts[i], start.Add(at)) })
	}
	others.Wait()
	return all, errors.Join(append(failed, warmErr)...)
}

// warm warms one manifest after the other, each cold, until ctx ends.
func (b *servingBench) warm(ctx context.Context) error {
	for {
		b.tenants++
		r, err := warmUp(ctx, b.manifest, fmt.Sprintf("serving-%d", b.tenants), b.info, []warmup.Worker{b.worker})
		b.warmed += r.ComputedTokens
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ask sends one request and reads the stream that it is answered by.
func (b *servingBench) ask(ctx context.Context, prompt []int32, due time.Time) (t timing, err error) {
	body, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": b.o.AnswerTokens, "temperature": 0, "stream": true})
	if err != nil {
		return t, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.worker.Name()+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return t, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.http.Do(req)
	if err != nil {
		return t, err
	}
	defer resp.Body.Close()
	var last []byte
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		if t.ttft == 0 {
			t.ttft = time.Since(due)
		}
		last = slices.Clone(lines.Bytes())
	}
	t.total = time.Since(due)
	if err := lines.Err(); err != nil {
		return t, err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Equal(last, []byte("data: [DONE]")) {
		return t, fmt.Errorf("bench: a request was answered %s: %s", resp.Status, last)
	}
	return t, nil
}
