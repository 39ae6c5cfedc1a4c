package tiered

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/mutation"
	"github.com/kvtier/kvtier/store"
)

// lead fetches fills in their order and finishes each of them, asking for group of them at a time: all at once keep the wire full, fewer
// arrive one by one on a slow one. It runs under its own deadline, whoever waits may leave at any time. It returns how many bytes took how
// long, from the first question to the last arrival.
func (c *Cache) lead(fills []*fill, group int) (bytes int, took time.Duration) {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.FetchTimeout)
	defer cancel()
	l := leading{Cache: c, rest: fills, group: group, start: c.now()}
	var second sync.WaitGroup
	if group < len(fills) && c.opts.Steps == nil {
		second.Go(func() { l.run(ctx) }) // the wire is not to idle while the next group is asked for
	}
	l.run(ctx)
	second.Wait()
	return l.bytes, l.took
}

// leading is the state of a lead. Two goroutines take groups from it in turn.
type leading struct {
	*Cache
	group int
	start time.Time

	mu    sync.Mutex
	rest  []*fill // not asked for yet
	bytes int
	took  time.Duration // until the last arrival
}

func (l *leading) run(ctx context.Context) {
	scratch := l.scratches.Get().(*codec.Scratch)
	defer l.scratches.Put(scratch)
	for {
		fills := l.next()
		if len(fills) == 0 {
			return
		}
		done, err := l.read(ctx, fills, scratch, l.arrived)
		if err == nil {
			continue
		}
		if reasonOf(err) == MissDeadline {
			l.late()
		}
		l.fail(append(fills[done:], l.stop()...), err)
		return
	}
}

// next takes the next group, unless nobody wants what is left.
func (l *leading) next() []*fill {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) == 0 {
		return nil
	}
	if l.unwanted(l.rest) {
		l.rest = nil
		return nil
	}
	n := min(l.group, len(l.rest))
	fills := l.rest[:n:n]
	l.rest = l.rest[n:]
	return fills
}

// stop takes all that is left.
func (l *leading) stop() []*fill {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.rest
	l.rest = nil
	return rest
}

func (l *leading) arrived(bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += bytes
	l.took = l.now().Sub(l.start)
}

// late takes the time that was waited in vain for that of a block at least: it would have taken longer still.
func (l *leading) late() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes = max(l.bytes, l.format.Layout().BlockBytes())
	l.took = l.now().Sub(l.start)
}

// read fetches fills in one batch and commits them as they arrive, each part with its size. It returns how many arrived and why it stopped;
// without an error all are finished, those that did not arrive because nobody wants them any more.
func (c *Cache) read(ctx context.Context, fills []*fill, scratch *codec.Scratch, arrived func(bytes int)) (at int, failed error) {
	parts := c.format.Layout().PartCount()
	entries := make([]*entry, len(fills))
	keys := make([]string, 0, len(fills)*parts)
	bufs := make([][]byte, 0, len(fills)*parts)
	for i, f := range fills {
		e := c.slabs.get(f.key.gen, f.ns, f.cut, f.key.hash, f.depth)
		e.share.Store(c.spill.sharedNow())
		entries[i] = e
		for p := range parts {
			keys = append(keys, e.key(p))
		}
		bufs = append(bufs, e.frames...)
	}
	got := 0 // parts of the block that is arriving
	for n, err := range c.remote.Get(ctx, keys, bufs) {
		e := entries[at]
		if err == nil {
			arrived(n)
			e.frames[got], e.places[got], err = c.format.OpenAny(e.frames[got], n, e.header(got), scratch)
		}
		if err != nil && mutation.Is(mutation.PublishPartial) {
			l := c.format.Layout()
			e.frames[got] = e.frames[got][:c.format.FrameBytes(l.Part(got))]
			e.places[got], err = c.format.Payload(e.frames[got]), nil
		}
		if err != nil {
			failed = err
			break
		}
		if got++; got == parts {
			c.commit(fills[at], e)
			at, got = at+1, 0
			if at < len(fills) && c.unwanted(fills[at:]) {
				break
			}
		}
	}
	for _, e := range entries[at:] { // not before the loop has ended: until then the store may write into them
		e.release()
	}
	if at < len(fills) && failed == nil {
		select {
		case <-fills[at].done:
		default:
			failed = context.DeadlineExceeded // a store that yields too little is out of contract; treat it as out of time
		}
	}
	return at, failed
}

// fail finishes fills that were not fetched, the first of them because of err.
func (c *Cache) fail(fills []*fill, err error) {
	// Before anybody is told: who computes the block anew must not have its fresh value deleted.
	c.discardBad(fills[0], err)
	why := reasonOf(err)
	if why == MissCold {
		why = MissEvicted // it was there when the store was asked
	}
	for _, f := range fills {
		c.finish(f, nil, why)
	}
}

// commit makes a fetched block hot and hands it to whoever waits. insert compares the generation under the lock that a change of generation
// takes, so a fill that was under way across a change leaves nothing behind; waiters compare once more before they use it.
func (c *Cache) commit(f *fill, e *entry) {
	c.admit(e)
	if !c.allows(&f.key.gen, f.ns, f.cut, AccessHot) && !mutation.Is(mutation.FlightWithoutGen) && !mutation.Is(mutation.LateInsert) {
		e.release()
		c.finish(f, nil, c.lost(&f.key.gen, f.ns, f.cut))
		return
	}
	c.finish(f, e, MissNone)
}

// discardBad removes a value that failed its checks, so that it is computed and stored anew instead of failing for everybody. Values of
// another format version are left alone: two releases running side by side would delete each other's.
func (c *Cache) discardBad(f *fill, why error) {
	if !errors.Is(why, codec.ErrCorrupt) && !errors.Is(why, codec.ErrForeign) && !errors.Is(why, store.ErrTooLarge) {
		return
	}
	c.stats.badValues.Add(1)
	c.opts.Logger.Warn("bad value deleted", "block", f.key.hash, "err", why)
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.ProbeTimeout)
	defer cancel()
	variant := f.key.gen.Identity.Variant()
	keys := make([]string, c.format.Layout().PartCount())
	for p := range keys {
		keys[p] = block.Key(variant, f.key.gen.Epoch, f.key.hash, p)
	}
	_, _ = c.remote.Delete(ctx, keys) // best effort: it stays a miss either way
}
