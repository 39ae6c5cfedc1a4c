package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// probe is a pipeline of EXISTS that is used again and again: a chain has thousands of keys, and a command each would cost a
// kilobyte of garbage per block. Commands remember the slot of their key, so that a cluster needs fresh ones.
type probe struct {
	keys  []string // its own: the caller may leave before the answer comes
	args  []any
	cmds  []*redis.IntCmd
	queue []redis.Cmder
}

// Lead implements store.Store with one EXISTS per key in one pipeline, which the client splits by node and sends to all nodes
// at once. With an error it returns how many keys were known to exist before it.
func (s *Store) Lead(ctx context.Context, keys []string) (int, error) {
	if err := s.usable(ctx); err != nil {
		return 0, &opError{"lead", "", err}
	}
	if len(keys) == 0 {
		return 0, nil
	}
	if h := s.hedge; h != nil && h.cluster == nil && h.ready() {
		return s.leadHedged(ctx, h, keys)
	}
	p := s.newProbe(keys)
	l, late := ask(ctx, s, keys[0], "lead", func(ctx context.Context) led { return s.answer(ctx, s.client, p) })
	if late != nil {
		return 0, late
	}
	return l.n, l.err
}

// answer asks c what p asks, and lets go of p.
func (s *Store) answer(ctx context.Context, c redis.UniversalClient, p *probe) led {
	pipe := c.Pipeline()
	_ = pipe.BatchProcess(ctx, p.queue...) // queues only
	_, _ = pipe.Exec(ctx)                  // the first error, which may belong to a key behind the first gap; each command has its own
	if p.cmds[0].Err() == nil {
		s.heard()
	}
	for i, cmd := range p.cmds {
		n, err := cmd.Result()
		if err != nil {
			key := p.keys[i]
			return led{i, wrap(ctx, "lead", key, s.blame(ctx, key, s.diagnose(ctx, err)))} // p is left to the collector: it may hold the error
		}
		if n == 0 {
			s.freeProbe(p)
			return led{i, nil}
		}
	}
	n := len(p.cmds)
	s.freeProbe(p)
	return led{n, nil}
}

func (s *Store) newProbe(keys []string) *probe {
	p, _ := s.probes.Get().(*probe)
	if p == nil || s.lanes.cluster != nil {
		p = new(probe)
	}
	n := len(keys)
	if cap(p.args) < 2*n { // commands point into args
		*p = probe{keys: make([]string, n), args: make([]any, 2*n), cmds: make([]*redis.IntCmd, 0, n), queue: make([]redis.Cmder, 0, n)}
	}
	p.keys, p.args, p.queue = append(p.keys[:0], keys...), p.args[:2*n], p.queue[:n]
	made := len(p.cmds[:cap(p.cmds)])
	all := p.cmds[:made]
	for i := range n {
		args := p.args[2*i:][:2:2]
		args[0], args[1] = "exists", &p.keys[i]
		if all[i] == nil {
			all[i] = redis.NewIntCmd(background, args...)
		}
		all[i].SetErr(nil)
		all[i].SetVal(0)
		p.queue[i] = all[i]
	}
	p.cmds = all[:n]
	return p
}

// freeProbe forgets the caller's keys.
func (s *Store) freeProbe(p *probe) {
	const keepKeys = 16384
	if s.lanes.cluster != nil || cap(p.cmds) > keepKeys {
		return
	}
	clear(p.args)
	clear(p.keys)
	s.probes.Put(p)
}
