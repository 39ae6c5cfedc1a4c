package spill

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Remote is what a storer needs of the remote tier. An error that is store.ErrNode is one of a part of the tier; one that is ErrNotNow means
// that nothing was asked or written, and that nobody is to blame.
type Remote[B any] interface {
	// Has counts how many blocks of r are there, from the first on without a gap; if r has a Parent, that counts as the first. An error is
	// that of the block behind them.
	Has(ctx context.Context, r Run[B]) (int, error)
	// Write stores blocks and returns what became of each; nil means that all went well.
	Write(ctx context.Context, blocks []B) []error
}

// ErrNotNow is the error of a Remote that may not be used at present.
var ErrNotNow = errors.New("spill: the remote tier may not be used at present")

// Run is blocks of one chain that follow each other.
type Run[B any] struct {
	Blocks []B
	// Parent says that the block before them, named Before, has to be there already.
	Parent bool
	Before block.Hash
}

// BatchBytes is how much a storer moves at once: several of a store's pipelines, so that the wire does not idle between batches.
const BatchBytes = 16 << 20

// Options configure a Storer.
type Options[B Block[B]] struct {
	Queue  *Queue[B]
	Remote Remote[B]
	// Timeout bounds the questions about a batch, and then again the writing.
	Timeout time.Duration
	// Probes is how many questions are asked at once. With 1 all calls of Remote are made by the goroutine that calls Turn.
	Probes int
	// Rescue is told of a block whose predecessor the remote tier lacks. If it can, it offers what comes before the block and reports true:
	// the block is then stored behind that. It is asked once for each block.
	Rescue func(b B) bool
	Logger *slog.Logger
}

// Storer empties a queue. It belongs to one goroutine.
type Storer[B Block[B]] struct {
	o     Options[B]
	all   halt  // of everything that is not parked, and with it of the rest
	known halt  // of what is parked
	limit int64 // bytes of the next batch
	sick  bool  // something is parked
}

// NewStorer returns a storer.
func NewStorer[B Block[B]](o Options[B]) *Storer[B] { return &Storer[B]{o: o, limit: BatchBytes} }

// Turn stores one batch, if there is one and it is time. It returns how long nothing is left to do: 0 means that there may be more at once, and
// less than 0 that there is nothing before the next offer. now is the clock.
//
// If nothing got through of what had not failed before, and it is not known to be the fault of one part of the tier, everything waits, longer
// each time. After a time-out the next batch is one block, then twice as much each time: a link on which a whole batch takes longer than
// Options.Timeout would never get anything through.
func (s *Storer[B]) Turn(ctx context.Context, now func() time.Time) time.Duration {
	at := now()
	if wait := s.all.left(at); wait > 0 {
		return wait
	}
	held := s.known.left(at)
	batch := s.o.Queue.take(s.limit, at, held == 0)
	if len(batch) == 0 {
		s.report(nil)
		if due := s.o.Queue.nextDue(); !due.IsZero() {
			return max(due.Sub(at), held, time.Microsecond)
		}
		return -1
	}
	runs := s.sift(ctx, batch)
	s.write(ctx, runs)
	at = now()
	s.o.Queue.settle(runs, at)
	return s.judge(runs, at)
}

// write stores what is missing.
func (s *Storer[B]) write(ctx context.Context, runs []*run[B]) {
	var blocks []B
	for _, r := range runs {
		for j, f := range r.fates {
			if f == missing {
				blocks = append(blocks, r.Blocks[j])
			}
		}
	}
	if len(blocks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	errs := s.o.Remote.Write(ctx, blocks)
	i := 0
	for _, r := range runs {
		for j, f := range r.fates {
			if f != missing {
				continue
			}
			r.fates[j] = finished
			if errs != nil && errs[i] != nil {
				r.fates[j] = failed
				if errors.Is(errs[i], ErrNotNow) {
					r.fates[j] = unasked
				}
				if r.err == nil {
					r.err = errs[i]
				}
			}
			i++
		}
	}
}
