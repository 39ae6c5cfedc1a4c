package coordinator

import (
	"context"
	"math/rand/v2"
	"time"
)

// leaseLoop holds the lease, or waits for its turn, until ctx ends; then it lets others lead at once.
func (c *Coordinator) leaseLoop(ctx context.Context) {
	for ctx.Err() == nil {
		c.campaign(ctx)
		sleep(ctx, time.Duration(float64(c.opt.Leadership)*0.3*(0.9+0.2*rand.Float64())))
	}
	if l := c.leadership(); l.leads(c.opt.Now(), c.opt.Leadership) {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.opt.Control.resign(end, l) // it expires anyway
	}
}

// campaign asks for the lease once.
func (c *Coordinator) campaign(ctx context.Context) {
	before := c.leadership()
	opCtx, cancel := context.WithTimeout(ctx, c.opt.Leadership/5)
	defer cancel()
	sent := c.opt.Now()
	h, err := c.opt.Control.campaign(opCtx, before, c.opt.Leadership)
	if ctx.Err() != nil {
		return
	}
	now := c.opt.Now()
	c.mu.Lock()
	if err == nil {
		c.lead = c.lead.heard(h, sent)
	}
	after := c.lead
	led, leads := c.led, after.leads(now, c.opt.Leadership)
	c.led = leads
	c.mu.Unlock()
	switch {
	case leads && (!led || before.term != after.term):
		c.metrics.takeovers.Inc()
		c.opt.Logger.Info("leading", "owner", after.owner, "term", after.term)
	case led && !leads:
		c.opt.Logger.Warn("not leading any more", "owner", after.owner, "now", after.other, "err", err)
	}
}

func (c *Coordinator) leadership() leadership {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lead
}

// leading returns the lease if this coordinator holds it now.
func (c *Coordinator) leading() (leadership, bool) {
	l := c.leadership()
	return l, l.leads(c.opt.Now(), c.opt.Leadership)
}

// deposed steps down because something was seen that only a later leader can have written, or that the lease is gone.
func (c *Coordinator) deposed(term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lead.floor = max(c.lead.floor, term)
	if c.led {
		c.opt.Logger.Warn("deposed", "owner", c.lead.owner, "term", c.lead.term, "seen", term)
	}
	c.lead, c.led = c.lead.lost(""), false
}
