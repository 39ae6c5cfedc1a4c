package spill

import "time"

// settle ends a batch: what was judged leaves, what failed is parked, the rest is as before.
func (q *Queue[B]) settle(runs []*run[B], now time.Time) {
	var out [ends][]*item[B]
	var back, again []*item[B]
	gather := false
	type through struct {
		p     *park[B]
		front bool
	}
	var free []through // parks whose first block is through
	q.mu.Lock()
	for _, r := range runs {
		var aside *park[B]
		for j, it := range r.items {
			p := it.park
			switch f := r.fates[j]; {
			case f == failed && p != nil:
				p.pause = longer(p.pause)
				q.tried(it, now.Add(p.pause))
			case f == failed && aside != nil:
				q.join(aside, it, false)
			case f == failed:
				aside = q.park(it, now)
				gather = true
			case f == unasked && p != nil:
				q.tried(it, p.due)
			case f == unasked:
				back = append(back, it)
			default:
				if f == rescued {
					again = append(again, it)
				} else {
					why := [...]End{ended: Had, nowhere: Incomplete, finished: Stored}[f]
					out[why] = append(out[why], it)
					q.forget(it)
				}
				if p != nil {
					free = append(free, through{p, f != rescued})
				}
			}
		}
	}
	q.pushAll(back, true)
	q.pushAll(again, false)
	for _, t := range free {
		q.dissolve(t.p, t.front)
	}
	if gather {
		q.gather()
	}
	q.announce()
	q.mu.Unlock()
	for why, items := range out {
		q.tell(items, End(why))
	}
}
