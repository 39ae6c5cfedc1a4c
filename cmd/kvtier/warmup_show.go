package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
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
	lines  []*mpb.Bar // below it: figures, and a line for each worker
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
		// What the terminal shows of a Ctrl-C moves the cursor: begin at the left all the same.
		mpb.PrependDecorators(decor.Name("\r")),
		mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Name(" "), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done")))
	s.lines = []*mpb.Bar{s.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(decor.Any(s.line)))}
	for i, w := range workers {
		name := strings.TrimPrefix(strings.TrimPrefix(w.Name(), "http://"), "https://")
		s.lines = append(s.lines, s.bars.New(0, mpb.NopStyle(), mpb.PrependDecorators(
			decor.Any(func(st decor.Statistics) string { return s.workerLine(i, name, st.AvailableWidth) }))))
	}
}

// line is the state of the whole run, as far as it fits.
func (s *warmupScreen) line(st decor.Statistics) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fit(st.AvailableWidth, s.figures()...)
}

// figures are the state of the whole run, the most important first.
func (s *warmupScreen) figures() []string {
	r := s.report
	first := fmt.Sprintf("%s of %s prompts", humanize.Comma(r.DoneItems), humanize.Comma(s.stats.Prompts))
	if failed := r.Failed - s.stats.Broken; failed > 0 {
		first += fmt.Sprintf(", %s failed", humanize.Comma(failed))
	}
	return []string{first, humanize.Comma(int64(r.TokensPerSec)) + " tokens/s", humanize.Comma(r.ComputedTokens) + " tokens computed",
		humanize.IBytes(uint64(r.BytesStored)) + " stored"}
}

func (s *warmupScreen) workerLine(i int, name string, width int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.report.Workers) {
		return fit(width, "  "+name)
	}
	w := s.report.Workers[i]
	parts := []string{"  " + name}
	if w.Down {
		parts = append(parts, "does not answer")
	}
	return fit(width, append(parts, humanize.Comma(w.ComputedTokens)+" tokens", humanize.IBytes(uint64(w.BytesStored)), humanize.Comma(w.Tasks)+" tasks")...)
}

// fit joins as many parts as fit a line; of the first, what fits.
func fit(width int, parts ...string) string {
	line := parts[0]
	if r := []rune(line); len(r) > width {
		return string(r[:max(0, width)])
	}
	for _, p := range parts[1:] {
		if len(line)+2+len(p) > width {
			break
		}
		line += ", " + p
	}
	return line
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
		fmt.Fprintf(s.out, "warming up: %s%s\n", strings.Join(s.figures(), ", "), left)
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
	bars, total, lines := s.bars, s.total, s.lines
	s.mu.Unlock()
	if bars == nil {
		return
	}
	total.Abort(false) // does nothing to a bar that is complete
	for _, b := range lines {
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
