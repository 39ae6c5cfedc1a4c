package tiered

import (
	"fmt"

	"github.com/kvtier/kvtier/block"
)

// Put takes in a block that was computed under v: the last of chain, in namespace ns. export is called once per part to
// write its payload, unless the block is hot already or v is not current any more; then Put does nothing. The generation that the
// block is labelled with is v's, captured when the request began, never the one current at some later moment.
func (c *Cache) Put(v View, ns block.Digest, chain []block.Hash, export func(p block.Part, dst []byte) error) error {
	sc, depth := scope{v.Generation, ns, v.Cuts[ns]}, len(chain)-1
	hash := chain[depth]
	if c.closed.Load() || !c.allows(&sc, AccessHot) || c.hot.contains(v.Generation, hash) {
		return nil
	}
	e := c.slabs.get(sc, hash, parentOf(chain, depth), depth)
	defer e.release()
	l := c.format.Layout()
	for i := range e.frames {
		p := l.Part(i)
		e.frames[i] = e.frames[i][:c.format.FrameBytes(p)]
		e.places[i] = c.format.Payload(e.frames[i])
		if err := export(p, e.places[i]); err != nil {
			return fmt.Errorf("tiered: put block %d: %w", depth, err)
		}
		if err := c.format.Seal(e.frames[i], e.header(i)); err != nil {
			return err
		}
	}
	c.admit(e, false)
	switch {
	case c.remote == nil:
	case c.opts.WritePolicy == WriteThrough, c.opts.WritePolicy == WriteOnSecondHit && c.seen.again(hash):
		c.offerNew(e)
	}
	return nil
}

// parentOf returns the block of chain before the i-th, zero for the first.
func parentOf(chain []block.Hash, i int) (h block.Hash) {
	if i > 0 {
		h = chain[i-1]
	}
	return h
}

// admit makes e hot and passes on what had to leave for it.
func (c *Cache) admit(e *entry, fetched bool) {
	if fetched {
		c.spill.guard.add(&e.gen, e.hash, len(e.frames), c.now())
	}
	victims, _ := c.hot.insert(e, fetched)
	c.stats.evicted.Add(int64(len(victims)))
	c.fates.evicted(victims)
	for _, v := range victims {
		if c.remote != nil && c.opts.WritePolicy == WriteOnEvict {
			c.offerEvicted(v)
		}
		reuseEarly(v)
		v.release()
	}
}
