package spill

import (
	"context"
	"errors"
	"time"

	"github.com/kvtier/kvtier/store"
)

// halt is a pause because nothing got through.
type halt struct {
	pause time.Duration // 0: none
	until time.Time
}

// over is how long it lasts.
func (h *halt) left(now time.Time) time.Duration {
	if h.pause == 0 {
		return 0
	}
	return max(0, h.until.Sub(now))
}

// longer begins the next.
func (h *halt) longer(now time.Time) {
	h.pause = longer(h.pause)
	h.until = now.Add(h.pause)
}

// verdict is what a batch says about the remote tier.
type verdict struct {
	well  bool  // it has answered
	err   error // it, or a part of it, has not
	local bool  // only parts that are known to be such
	late  bool
	moved int64 // bytes that are through
}

func (v *verdict) add(cost int64, f fate, err error) {
	switch f {
	case ended, finished, nowhere, rescued:
		v.well = true
		v.moved += cost
	case failed, unasked:
		if err != nil {
			v.local = errors.Is(err, store.ErrNode) && (v.err == nil || v.local)
			v.err = err
			v.late = v.late || !v.local && errors.Is(err, context.DeadlineExceeded)
		}
	}
}

// judge decides how to go on after a batch.
func (s *Storer[B]) judge(runs []*run[B], now time.Time) time.Duration {
	var fresh, again verdict // of blocks that had not failed before, and of those that had
	for _, r := range runs {
		for j, it := range r.items {
			v := &fresh
			if it.trial {
				v = &again
			}
			v.add(it.cost, r.fates[j], r.err)
		}
	}
	switch {
	case fresh.late, again.late && !fresh.well && !again.well:
		s.limit = max(1, fresh.moved)
	case fresh.well || again.well:
		s.limit = min(2*max(s.limit, fresh.moved+again.moved), BatchBytes)
	}
	if again.well {
		s.known = halt{}
	} else if again.err != nil && !again.local {
		s.known.longer(now)
	}
	if fresh.well || again.well {
		if s.all.pause > 0 {
			s.o.Logger.Info("spilling resumed")
		}
		s.all = halt{}
	} else if fresh.err != nil && !fresh.local {
		if s.all.pause == 0 {
			s.o.Logger.Warn("spilling paused", "err", fresh.err)
		}
		s.all.longer(now)
		return s.all.pause
	}
	s.report(runs)
	return 0
}

// report logs when blocks begin to be parked although others are stored, and when none are any more.
func (s *Storer[B]) report(runs []*run[B]) {
	if parked := s.o.Queue.Parked(); s.sick && parked == 0 {
		s.sick = false
		s.o.Logger.Info("all of what was set aside is stored or dropped")
	} else if !s.sick && parked > 0 {
		for _, r := range runs {
			if r.err != nil {
				s.sick = true
				s.o.Logger.Warn("some blocks cannot be stored; they are tried again, the others go on", "err", r.err)
				return
			}
		}
	}
}
