package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
)

// operation on the record: a read if next is "", else a compare-and-set.
type operation struct{ prev, next Sum }

// outcome of it. unknown is an operation whose answer was lost: it may have happened.
type outcome struct {
	read    Sum
	done    bool
	unknown bool
}

// register is what the record of a model has to be like: one value, changed by compare-and-set.
func register() porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{Sum("")} },
		Step: func(state, input, output any) []any {
			s, in, out := state.(Sum), input.(operation), output.(outcome)
			switch {
			case in.next == "":
				if out.unknown || out.read == s {
					return []any{s}
				}
				return nil
			case out.unknown && s == in.prev:
				return []any{s, in.next}
			case out.unknown:
				return []any{s}
			case out.done && s == in.prev:
				return []any{in.next}
			case !out.done && s != in.prev:
				return []any{s}
			}
			return nil
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	}).ToModel()
}

// history records operations of concurrent clients.
type history struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

func (h *history) add(client int, call int64, in operation, out outcome) {
	end := h.now()
	if out.unknown {
		end = 1 << 62 // it may take effect at any time from now on
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

// client is a coordinator that changes the record as fast as it can, and is killed and restarted: its connections break in the middle.
func (h *history) client(t *testing.T, id int, seed uint64, ops int, c *Control) {
	rng := rand.New(rand.NewPCG(seed, uint64(id)))
	var a acts
	a.n = uint64(id+1) << 32
	for range ops {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		call := h.now()
		found, err := c.Load(ctx, "m")
		switch {
		case errors.Is(err, ErrNoModel):
			found = Stored{}
			h.add(id, call, operation{}, outcome{})
		case err != nil:
			cancel()
			continue // a read whose answer was lost says nothing
		default:
			h.add(id, call, operation{}, outcome{read: found.Sum()})
		}
		if rng.IntN(3) == 0 {
			cancel()
			continue
		}
		base := found.Record
		prev := Sum("")
		if base.V == 0 {
			base = NewRecord("m")
		} else {
			prev = found.Sum()
		}
		next, err := base.Register(identity(byte(id), 1), fmt.Sprintf("c%d", id), true, a.at(time.Now()))
		if err == nil && next.Gen == base.Gen {
			next, err = base.Purge(AllVersions, a.at(time.Now()))
		}
		if err == nil && next.Gen == base.Gen {
			next, err = base.Activate(fmt.Sprintf("c%d", id), true, a.at(time.Now()))
		}
		next.Dead = nil // or the record would only grow
		want, encErr := NewStored(next)
		if err != nil || encErr != nil {
			t.Errorf("client %d: %v %v", id, err, encErr)
			cancel()
			return
		}
		call = h.now()
		_, err = c.Swap(ctx, found, next)
		switch {
		case err == nil:
			h.add(id, call, operation{prev, want.Sum()}, outcome{done: true})
		case errors.Is(err, ErrConflict):
			h.add(id, call, operation{prev, want.Sum()}, outcome{})
		default:
			h.add(id, call, operation{prev, want.Sum()}, outcome{unknown: true})
		}
		cancel()
	}
}

// The control record on a single Redis is a linearizable compare-and-set register, however many coordinators write and however often their
// connections are cut. Under failover of a replicated Redis it is not: acknowledged writes can be lost. Then it is only monotone for
// workers, and after reconciliation for all: see TestRaceGenerationGoesBack, TestWorldProperty and internal/stalecheck, I7 and I16.
func TestControlRecordIsLinearizable(t *testing.T) {
	check := func(t *testing.T, connect func() *Control, cut func()) {
		for seed := range uint64(6) {
			h := &history{start: time.Now()}
			var wg sync.WaitGroup
			for id := range 5 {
				c := connect()
				wg.Go(func() { h.client(t, id, seed, 60, c) })
			}
			stop := make(chan struct{})
			var killer sync.WaitGroup
			killer.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(12 * time.Millisecond):
						cut()
					}
				}
			})
			wg.Wait()
			close(stop)
			killer.Wait()
			done, unknown := 0, 0
			for _, o := range h.ops {
				if out := o.Output.(outcome); out.done {
					done++
				} else if out.unknown {
					unknown++
				}
			}
			result := porcupine.CheckOperationsTimeout(register(), h.ops, 30*time.Second)
			t.Logf("seed %d: %d operations, %d writes, %d of unknown outcome: %v", seed, len(h.ops), done, unknown, result)
			if result != porcupine.Ok {
				t.Errorf("seed %d: the history is not linearizable (%v)", seed, result)
			}
			if done < 10 {
				t.Errorf("seed %d: only %d writes", seed, done)
			}
			if err := connect().Forget(t.Context(), "m"); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("miniredis", func(t *testing.T) {
		s := newServer(t)
		check(t, func() *Control { return s.control(t) }, func() { s.cut(false) })
	})
	t.Run("redis", func(t *testing.T) {
		r := pool.Get(t)
		admin := redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1})
		t.Cleanup(func() { _ = admin.Close() })
		check(t, func() *Control {
			rdb := dialControl(redis.UniversalOptions{Addrs: []string{r.Addr()}})
			t.Cleanup(func() { _ = rdb.Close() })
			return NewControl(rdb)
		}, func() {
			_ = admin.ClientKillByFilter(context.Background(), "TYPE", "normal", "SKIPME", "yes").Err() // those that are there
		})
	})
}

// The checker is worth something only if it notices a compare-and-set that does not compare.
func TestTheCheckerNoticesLostUpdates(t *testing.T) {
	ops := []porcupine.Operation{
		{ClientId: 0, Input: operation{"", "a"}, Output: outcome{done: true}, Call: 0, Return: 1},
		{ClientId: 1, Input: operation{"", "b"}, Output: outcome{done: true}, Call: 2, Return: 3},
	}
	if porcupine.CheckOperations(register(), ops) {
		t.Error("two writes on top of the same value pass")
	}
}
