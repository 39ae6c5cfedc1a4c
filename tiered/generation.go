package tiered

import (
	"maps"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/tiered/internal/spill"
)

// Generation says what K/V may be used together: the identity that computed it and the epoch it was computed in. Epoch numbers
// alone can repeat after a control record was lost, so the random Act is compared with them.
type Generation struct {
	Identity block.Identity
	Epoch    block.Epoch
	Act      [16]byte
}

// Access says which tiers may be used.
type Access uint8

// Levels of access, each including the one before.
const (
	AccessNone   Access = iota // no K/V may be reused: the variant is revoked, or a strict worker lost its lease
	AccessHot                  // only what this worker computed or fetched itself
	AccessShared               // the remote tier too
)

func (a Access) String() string {
	switch a {
	case AccessShared:
		return "shared"
	case AccessHot:
		return "hot"
	}
	return "none"
}

// View is what a cache may do at this moment. A request takes one View at its start and brings it to every call.
type View struct {
	Generation
	Access Access
	// Until, if set, is when Access falls to Then: the end of a lease on the worker's own clock.
	Until time.Time
	Then  Access
	// Cuts holds the last purge of every tenant that was purged, by namespace. It is shared and must not be changed.
	Cuts map[block.Digest]block.Cut
}

// at resolves the lease.
func (v View) at(now time.Time) View {
	if !v.Until.IsZero() && !now.Before(v.Until) && !ignoreLease() {
		v.Access, v.Until = min(v.Access, v.Then), time.Time{}
	}
	return v
}

// differs says why K/V of sc is not that of v; MissNone if it is.
func (sc *scope) differs(v View) Reason {
	switch {
	case v.Generation != sc.gen:
		return MissEpoch
	case v.Cuts[sc.ns] != sc.cut:
		return MissTenant
	}
	return MissNone
}

// SetView installs v. If its generation differs from the current one, every hot block and every queued spill of the old
// generation is dropped before SetView returns, and fills and puts under way for it will be refused. If only cuts differ, the
// same is true of the blocks of the tenants concerned.
func (c *Cache) SetView(v View) {
	c.viewMu.Lock()
	defer c.viewMu.Unlock()
	old := c.view.Swap(&v)
	if old != nil && old.Generation == v.Generation {
		if !maps.Equal(old.Cuts, v.Cuts) {
			c.stats.invalidated.Add(int64(c.hot.purge(v.Cuts)))
			c.spill.queue.DropIf(spill.Stale, func(e *entry) bool { return v.Cuts[e.ns] != e.cut })
		}
		return
	}
	// Order matters: the new view is visible first, so that a fill or a put of the old generation that is committed after
	// this drop sees it and refuses (hot.insert compares under the lock that drop takes).
	dropped := c.hot.drop(v.Generation, v.Cuts)
	c.stats.invalidated.Add(int64(dropped))
	if !labelAtDequeue() {
		c.spill.queue.DropIf(spill.Stale, func(e *entry) bool { return true })
	}
}

// View returns the current view: nothing is cached before the first SetView.
func (c *Cache) View() View {
	v := c.view.Load()
	if v == nil {
		return View{}
	}
	if v.Until.IsZero() { // the clock costs as much as a look-up
		return *v
	}
	return v.at(c.now())
}

// allows reports whether K/V of sc may be used now, with access a.
func (c *Cache) allows(sc *scope, a Access) bool {
	v := c.view.Load()
	if v == nil || v.Access < a || v.Generation != sc.gen || v.Cuts[sc.ns] != sc.cut {
		return false
	}
	return v.Until.IsZero() || v.at(c.now()).Access >= a
}

// lost says why allows has said no.
func (c *Cache) lost(sc *scope) Reason {
	if why := sc.differs(c.View()); why != MissNone {
		return why
	}
	return MissUnshared
}
