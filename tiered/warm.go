package tiered

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
)

// What a job that fills the remote tier needs. It goes past the hot tier in both directions, so that nothing that traffic made hot
// leaves for it, and it waits for the store, where a request never would: the job wants to know what is stored.

var (
	// ErrNotShared means that the remote tier may not be used now: no lease, or no remote tier at all.
	ErrNotShared = errors.New("tiered: the remote tier may not be used now")
	// ErrStale means that the generation, or the tenant's entries, ended meanwhile.
	ErrStale = errors.New("tiered: the generation has ended")
)

// warmWindow bounds what a job holds in memory of the blocks it reads or writes.
const warmWindow = 16 << 20

// shareable is nil while blocks of v and of tenant ns may be read from and written to the remote tier.
func (c *Cache) shareable(v *View, ns block.Digest) error {
	now := c.View()
	switch {
	case now.Generation != v.Generation || now.Cuts[ns] != v.Cuts[ns]:
		return ErrStale
	case c.remote == nil || now.Access != AccessShared || c.closed.Load():
		return ErrNotShared
	}
	return nil
}

// Stored counts how many of hashes, the chain of a prompt in namespace ns, the remote tier has from the front, complete with all their parts.
func (c *Cache) Stored(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) (int, error) {
	if err := c.shareable(&v, ns); err != nil {
		return 0, err
	}
	n, err := c.remote.Lead(ctx, c.Keys(v, hashes))
	if err != nil {
		return 0, fmt.Errorf("tiered: stored: %w", err)
	}
	return n / c.format.Layout().PartCount(), nil
}

// Keys are the names under which the blocks of hashes are stored, part by part.
func (c *Cache) Keys(v View, hashes []block.Hash) []string { return c.keys(&v.Generation, hashes) }

// window is how many blocks fit warmWindow.
func (c *Cache) window() int { return max(1, warmWindow/c.slabs.bytes) }

// blank returns empty blocks of a chain, of which the first is the depth-th.
func (c *Cache) blank(v View, ns block.Digest, hashes []block.Hash, depth int) []*entry {
	entries := make([]*entry, len(hashes))
	for i, h := range hashes {
		entries[i] = c.slabs.get(scope{v.Generation, ns, v.Cuts[ns]}, h, parentOf(hashes, i), depth+i)
	}
	return entries
}

func releaseAll(entries []*entry) {
	for _, e := range entries {
		e.release()
	}
}

// StoreDirect writes blocks that were computed under v to the remote tier and returns when they are there: bytes as stored. The first of hashes
// is the depth-th block of its chain; export writes the payload of a part of the i-th. The hot tier and the spill queue take no notice.
func (c *Cache) StoreDirect(ctx context.Context, v View, ns block.Digest, hashes []block.Hash, depth int, export func(i int, p block.Part, dst []byte) error) (int64, error) {
	stored := int64(0)
	for done := 0; done < len(hashes); {
		n := min(c.window(), len(hashes)-done)
		sum, err := c.storeWindow(ctx, v, ns, hashes[done:done+n], depth+done, func(i int, p block.Part, dst []byte) error {
			return export(done+i, p, dst)
		})
		if stored += sum; err != nil {
			return stored, err
		}
		done += n
	}
	return stored, nil
}

func (c *Cache) storeWindow(ctx context.Context, v View, ns block.Digest, hashes []block.Hash, depth int, export func(int, block.Part, []byte) error) (int64, error) {
	entries := c.blank(v, ns, hashes, depth)
	defer releaseAll(entries)
	if err := c.seal(entries, export); err != nil {
		return 0, err
	}
	// Somebody waits for memory here, not for time: what can be stored smaller is, whatever the link is like.
	items, sum, encoded := c.values(entries, c.opts.Encoding)
	if err := c.shareable(&v, ns); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.SpillTimeout)
	defer cancel()
	if err := c.remote.Put(ctx, items, c.opts.TTL); err != nil {
		return 0, fmt.Errorf("tiered: store: %w", err)
	}
	c.link.storedBytes.Add(sum)
	c.link.encodedBytes.Add(encoded)
	c.stats.spilled.Add(int64(len(hashes)))
	c.tenants.stored(ns, sum)
	return sum, nil
}

// seal seals the payloads that export writes.
func (c *Cache) seal(entries []*entry, export func(int, block.Part, []byte) error) error {
	l := c.format.Layout()
	for i, e := range entries {
		for p := range e.frames {
			part := l.Part(p)
			e.frames[p] = e.frames[p][:c.format.FrameBytes(part)]
			if err := export(i, part, c.format.Payload(e.frames[p])); err != nil {
				return fmt.Errorf("tiered: store block %d: %w", e.depth, err)
			}
			if err := c.format.Seal(e.frames[p], e.header(p)); err != nil {
				return err
			}
		}
	}
	return nil
}

// values is what is stored for entries, their size, and how much of that is encoded.
func (c *Cache) values(entries []*entry, enc codec.Encoding) (items []store.Item, sum, encoded int64) {
	scratch := c.scratches.Get().(*codec.Scratch)
	defer c.scratches.Put(scratch)
	for _, e := range entries {
		for p, frame := range e.frames {
			if out, ok := c.format.Encode(nil, frame, enc, scratch); ok {
				frame = out
				encoded += int64(len(out))
			}
			items = append(items, store.Item{Key: e.key(p), Value: frame})
			sum += int64(len(frame))
		}
	}
	return items, sum, encoded
}

// Weigh says how many bytes the blocks of hashes would take in the remote tier, as they are and encoded, and stores nothing.
func (c *Cache) Weigh(v View, ns block.Digest, hashes []block.Hash, export func(i int, p block.Part, dst []byte) error) (raw, encoded int64, err error) {
	entries := c.blank(v, ns, hashes, 0)
	defer releaseAll(entries)
	if err := c.seal(entries, export); err != nil {
		return 0, 0, err
	}
	_, raw, _ = c.values(entries, codec.Raw)
	_, encoded, _ = c.values(entries, codec.Planes)
	return raw, encoded, nil
}

// Pin takes the TTL off the blocks of hashes, so that no server whose policy evicts volatile keys only evicts them, and returns how
// many are stored completely, from the front. ErrPins means that the store cannot.
func (c *Cache) Pin(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) (int, error) {
	if err := c.shareable(&v, ns); err != nil {
		return 0, err
	}
	pinner, ok := store.As[store.Pinner](c.remote)
	if !ok {
		return 0, ErrPins
	}
	n, err := pinner.Pin(ctx, c.Keys(v, hashes))
	if err != nil {
		return 0, fmt.Errorf("tiered: pin: %w", err)
	}
	return n / c.format.Layout().PartCount(), nil
}

// Unpin gives the blocks of hashes their TTL back.
func (c *Cache) Unpin(ctx context.Context, v View, ns block.Digest, hashes []block.Hash) error {
	if err := c.shareable(&v, ns); err != nil {
		return err
	}
	pinner, ok := store.As[store.Pinner](c.remote)
	if !ok {
		return ErrPins
	}
	if err := pinner.Unpin(ctx, c.Keys(v, hashes), c.opts.TTL); err != nil {
		return fmt.Errorf("tiered: unpin: %w", err)
	}
	return nil
}

// ErrPins means that the remote tier cannot keep values without a TTL.
var ErrPins = errors.New("tiered: the remote tier cannot pin")

// Shared reports whether there is a remote tier.
func (c *Cache) Shared() bool { return c.remote != nil }
