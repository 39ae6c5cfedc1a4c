package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows how far a long job is: a bar on a terminal, else a line every few seconds. It is safe for concurrent use.
type progress struct {
	bars *mpb.Progress
	bar  *mpb.Bar

	mu    sync.Mutex
	out   io.Writer
	name  string
	n     int
	total int
	next  time.Time
}

const lineEvery = 5 * time.Second

func newProgress(out io.Writer, name string, total int) *progress {
	p := &progress{out: out, name: name, total: total, next: time.Now().Add(lineEvery)}
	if isTerminal(out) {
		p.bars = mpb.New(mpb.WithOutput(out), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(int64(total),
			mpb.PrependDecorators(decor.Name(name+" "), decor.CountersNoUnit("%d/%d")),
			mpb.AppendDecorators(decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "done")))
	}
	return p
}

func (p *progress) step() { p.add(1) }

func (p *progress) add(n int) {
	if p.bar != nil {
		p.bar.IncrBy(n)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if time.Now().After(p.next) {
		fmt.Fprintf(p.out, "%s: %d of %d\n", p.name, p.n, p.total)
		p.next = time.Now().Add(lineEvery)
	}
}

// done ends the display, also when the job was cut short.
func (p *progress) done() {
	if p.bar != nil {
		p.bar.Abort(false) // does nothing to a bar that is complete
		p.bars.Wait()
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
