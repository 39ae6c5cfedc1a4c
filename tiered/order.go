package tiered

// order is the blocks of the hot tier from the youngest to the oldest, as a ring through the blocks themselves. Within a chain the leaves come
// behind their root, whether it was put block by block or used as a whole: what is left of a chain when its oldest blocks have left
// is its front, which is of use. The zero value has to be reset; it is not safe for concurrent use.
type order struct{ ring entry }

func (o *order) reset() { o.ring.newer, o.ring.older = &o.ring, &o.ring }

// insert puts e directly behind before, or makes it the youngest if that is nil.
func (o *order) insert(e, before *entry) {
	if before == nil {
		before = &o.ring
	}
	e.newer, e.older = before, before.older
	e.newer.older, e.older.newer = e, e
}

func (o *order) remove(e *entry) {
	e.newer.older, e.older.newer = e.older, e.newer
	e.newer, e.older = nil, nil
}

// oldest returns the block that leaves next; the ring itself if there is none.
func (o *order) oldest() *entry { return o.ring.newer }
