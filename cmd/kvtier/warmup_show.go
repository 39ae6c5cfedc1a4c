package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/kvtier/kvtier/warmup"
)

// maxBroken is how many broken lines are named; the rest is counted.
const maxBroken = 20

// warmupScreen shows how far a warm-up is: bars on a terminal, else a line every few seconds. Its methods may be called by several
// goroutines.
type warmupScreen struct {
	out   io.Writer
	quiet bool // no summary lines beside the JSON

	mu     sync.Mutex
	named  int
	next   time.Time
	report warmup.Report
	stats  warmup.Stats
	bars   *mpb.Progress
	total  *mpb.Bar
	each   []*mpb.Bar
}

func newWarmupScreen(out io.Writer, quiet bool) *warmupScreen {
	return &warmupScreen{out: out, quiet: quiet, next: time.Now().Add(lineEvery)}
}

// broken names a line or a prompt that cannot be used.
func (s *warmupScreen) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.named++; s.named > maxBroken {
		return
	}
	text := fmt.Sprintf("kvtier: %v\n", err)
	if s.named == maxBroken {
		text += "kvtier: further ones are only counted\n"
	}
	if s.bars != nil {
		_, _ = s.bars.Write([]byte(text))
		return
	}
	_, _ = io.WriteString(s.out, text)
}

func (s *warmupScreen) planning(prompts int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().After(s.next) {
		fmt.Fprintf(s.out, "planning: %s prompts\n", humanize.Comma(prompts))
		s.next = time.Now().Add(lineEvery)
	}
}

// begin starts the display of the run.
func (s *warmupScreen) begin(stats warmup.Stats, workers []warmup.Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = stats
	s.next = time.Now().Add(lineEvery)
	if !isTerminal(s.out) {
		return
	}
	s.bars = mpb.New(mpb.WithOutput(s.out), mpb.WithWidth(40))
	s.total = s.bars.AddBar(stats.UniqueBlocks,
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return s.line() })),
		mpb.AppendDecorators(decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done")))
	for i, w := range workers {
		s.each = append(s.each, s.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(
			decor.Any(func(decor.Statistics) string { return "  " + s.workerLine(i, w.Name()) }))))
	}
}

// line is the state of the whole run.
func (s *warmupScreen) line() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lineLocked()
}

func (s *warmupScreen) lineLocked() string {
	r := s.report
	return fmt.Sprintf("%d of %d prompts, %s tokens computed, %s stored, %s tokens/s ",
		r.DoneItems, s.stats.Prompts, humanize.Comma(r.ComputedTokens), humanize.IBytes(uint64(r.BytesStored)), humanize.Comma(int64(r.TokensPerSec)))
}

func (s *warmupScreen) workerLine(i int, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.report.Workers) {
		return name
	}
	w := s.report.Workers[i]
	state := ""
	if w.Down {
		state = ", does not answer"
	}
	return fmt.Sprintf("%s: %d tasks, %s tokens, %s%s", name, w.Tasks, humanize.Comma(w.ComputedTokens), humanize.IBytes(uint64(w.BytesStored)), state)
}

// progress takes in a report. Reports come one at a time.
func (s *warmupScreen) progress(r warmup.Report) {
	s.mu.Lock()
	r.Workers = append([]warmup.WorkerReport(nil), r.Workers...)
	s.report = r
	bar := s.total
	if bar == nil && time.Now().After(s.next) {
		left := ""
		if done := float64(r.DoneBlocks); done > 0 && s.stats.UniqueBlocks > 0 {
			rest := time.Duration(r.Seconds * (float64(s.stats.UniqueBlocks)/done - 1) * float64(time.Second))
			left = ", " + rest.Round(time.Second).String() + " left"
		}
		fmt.Fprintf(s.out, "warming up: %s%s\n", s.lineLocked(), left)
		s.next = time.Now().Add(lineEvery)
	}
	s.mu.Unlock()
	if bar != nil {
		bar.SetCurrent(r.DoneBlocks)
	}
}

// end ends the display, also when the run was cut short.
func (s *warmupScreen) end() {
	s.mu.Lock()
	bars, total, each := s.bars, s.total, s.each
	s.mu.Unlock()
	if bars == nil {
		return
	}
	total.Abort(false) // does nothing to a bar that is complete
	for _, b := range each {
		b.Abort(false)
	}
	bars.Wait()
}

func printWarmupReport(w io.Writer, r warmup.Report, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	fmt.Fprintf(w, "warmed %d of %d prompts in %.1f s: %s tokens computed, %s already there or shared (%s tokens/s), %s stored\n",
		r.DoneItems, r.Items, r.Seconds, humanize.Comma(r.ComputedTokens), humanize.Comma(r.SkippedTokens), humanize.Comma(int64(r.TokensPerSec)),
		humanize.IBytes(uint64(r.BytesStored)))
	if r.Failed > 0 {
		fmt.Fprintf(w, "%d failed\n", r.Failed)
	}
	t := newTable("worker", "tasks", "tokens computed", "bytes stored", "busy", "errors")
	for _, x := range r.Workers {
		t.row(x.Name, strconv.FormatInt(x.Tasks, 10), humanize.Comma(x.ComputedTokens), humanize.IBytes(uint64(x.BytesStored)),
			fmt.Sprintf("%.1f s", x.BusySeconds), strconv.FormatInt(x.Errors, 10))
	}
	return t.print(w)
}
