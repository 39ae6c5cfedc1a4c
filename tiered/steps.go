package tiered

import "time"

// Steps is the world as a single-threaded simulation wants it: nothing runs by itself. All of its functions are needed.
type Steps struct {
	// Now is the clock.
	Now func() time.Time
	// Go receives what would run in the background, a fill or a batch of spills, to run it once, at any time.
	Go func(task func())
	// Wait is where a request would wait for done. It may run tasks meanwhile, and reports whether done is closed; false
	// means that the time for fetching is over.
	Wait func(done <-chan struct{}) bool
}

// ProbeTimeout is how long a request may wait for what the remote tier has.
func (c *Cache) ProbeTimeout() time.Duration { return c.opts.ProbeTimeout }

// Now is the clock by which the cache measures; callers who add measurements of their own use the same.
func (c *Cache) Now() time.Time { return c.now() }

func (c *Cache) now() time.Time {
	if c.opts.Steps != nil {
		return c.opts.Steps.Now()
	}
	return time.Now()
}

// background runs task beside the caller; Close waits for it.
func (c *Cache) background(task func()) {
	if c.opts.Steps != nil {
		c.opts.Steps.Go(task)
		return
	}
	c.wg.Go(task)
}
