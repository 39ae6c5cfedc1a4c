package spill

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/kvtier/kvtier/block"
)

// fate is what has become of a block in a batch.
type fate uint8

const (
	missing  fate = iota // not there: to be written
	unasked              // nothing is known: as before, or behind one of which nothing is known
	ended                // as run.ends says
	failed               // as run.errs says
	rescued              // to be stored behind what has been offered for it
	nowhere              // its chain is not there
	finished             // written
)

// run is blocks of a batch that follow each other in one chain, and what becomes of each.
type run[B Block[B]] struct {
	items []*item[B]
	Run[B]
	fates []fate
	err   error // why some failed: the first reason
}

// split makes runs of a batch.
func split[B Block[B]](batch []*item[B]) (runs []*run[B]) {
	in := make(map[block.Hash]bool, len(batch))
	var last *item[B]
	for _, it := range batch {
		if last == nil || it.b.Depth() != last.b.Depth()+1 || it.b.Before() != last.b.Hash() || it.park != last.park {
			runs = append(runs, &run[B]{Run: Run[B]{Parent: it.b.Depth() > 0 && !in[it.b.Before()], Before: it.b.Before()}})
		}
		r := runs[len(runs)-1]
		r.items, r.Blocks = append(r.items, it), append(r.Blocks, it.b)
		in[it.b.Hash()] = true
		last = it
	}
	for _, r := range runs {
		r.fates = make([]fate, len(r.items))
	}
	return runs
}

// set is the fate of the blocks of r from the i-th on.
func (r *run[B]) set(i int, f fate) {
	for ; i < len(r.fates); i++ {
		r.fates[i] = f
	}
}

// answer is what the remote tier says about a run.
type answer struct {
	n     int
	err   error
	asked bool
}

// sift asks what the remote tier has of batch, so that nothing is stored twice, as when a block was computed because fetching it took too
// long or because another worker was as quick, and nothing behind a gap.
func (s *Storer[B]) sift(ctx context.Context, batch []*item[B]) []*run[B] {
	runs := split(batch)
	answers := s.ask(ctx, runs)
	fates := make(map[block.Hash]fate, len(batch)) // of blocks that others in the batch build on
	for i, r := range runs {
		n, err := answers[i].n, answers[i].err
		switch before := fates[r.Before]; {
		case !r.Parent && r.items[0].b.Depth() > 0 && before != missing && before != ended:
			if before == failed {
				before = unasked // it is parked with that one
			}
			r.set(0, before)
		case !answers[i].asked || errors.Is(err, ErrNotNow):
			r.set(0, unasked)
			r.err = err
		case r.Parent && n == 0 && err == nil:
			r.set(0, s.orphaned(r))
		case r.Parent && n == 0:
			r.set(0, failed)
			r.err = err
		default:
			if r.Parent {
				n--
			}
			for j := range n {
				r.fates[j] = ended
			}
			if err != nil && n < len(r.items) {
				r.set(n, failed)
				r.err = err
			}
		}
		for j, it := range r.items {
			fates[it.b.Hash()] = r.fates[j]
		}
	}
	return runs
}

// orphaned is the fate of a run whose predecessor is not there.
func (s *Storer[B]) orphaned(r *run[B]) fate {
	first := r.items[0]
	if first.rescued || s.o.Rescue == nil || !s.o.Rescue(first.b) {
		return nowhere
	}
	for _, it := range r.items {
		it.rescued = true
	}
	return rescued
}

// ask asks about all runs, several at once. Half of the time is for answers: whoever has not been asked by then is in a later batch, without
// those that took so long.
func (s *Storer[B]) ask(ctx context.Context, runs []*run[B]) []answer {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	half, stop := context.WithTimeout(ctx, s.o.Timeout/2)
	defer stop()
	answers := make([]answer, len(runs))
	one := func(i int) {
		if half.Err() == nil {
			n, err := s.o.Remote.Has(half, runs[i].Run)
			answers[i] = answer{n, err, true}
		}
	}
	if s.o.Probes <= 1 || len(runs) == 1 {
		for i := range runs {
			one(i)
		}
		return answers
	}
	var g errgroup.Group
	g.SetLimit(s.o.Probes)
	for i := range runs {
		g.Go(func() error { one(i); return nil })
	}
	_ = g.Wait() // they return none
	return answers
}
