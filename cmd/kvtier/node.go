package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
)

// nodeOptions say what a worker is made of.
type nodeOptions struct {
	model       string
	checkpoints []checkpoint // the first is loaded at the start
	address     string       // where its API listens, for status

	redis        string              // of data; "" for no remote tier
	hedge        time.Duration       // after which reads go to a replica as well; 0 for never
	replicas     []string            // of a single server, for hedge
	controlRedis string              // of control records; "" for the same server
	coordinator  *coordinator.Client // nil for a worker on its own

	secret        []byte
	onExpiry      coordinator.OnExpiry
	writePolicy   tiered.WritePolicy
	gate          gate.Mode
	fillLease     bool
	encoding      codec.Encoding
	hotBytes      int64
	spillBytes    int64
	ttl           time.Duration
	fetchTimeout  time.Duration
	sequences     int
	queue         int
	sequenceBytes int64
	poll, lease   time.Duration // of the control record; 0 for the defaults

	logger *slog.Logger
}

// checkpoint is a model file: a path, or one of the shipped models.
type checkpoint struct {
	label string
	open  func(context.Context) (engine.Engine, error)

	// Of files only: the identity without loading, perhaps from a note, and the one that reads everything.
	path     string
	identify func() (id block.Identity, noted bool, err error)
	recheck  func() (block.Identity, error)
}

// node is a running worker without its HTTP API.
type node struct {
	replica *worker.Replica
	cache   *tiered.Cache
	redis   *redisstore.Store // nil without one
	breaker *store.Breaker
	watch   *coordinator.Watch

	closers []func(context.Context) error // in order of closing
	cancel  context.CancelFunc
}

// startNode puts a worker together: engine, store, cache, watch. ctx bounds the start only.
func startNode(ctx context.Context, o nodeOptions) (n *node, err error) {
	background, cancel := context.WithCancel(context.Background())
	n = &node{cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close(ctx))
		}
	}()

	first, checkpoints, err := o.identify(ctx)
	if err != nil {
		return n, err
	}
	owned := true // until the replica takes it over
	defer func() {
		if owned {
			err = errors.Join(err, first.Close())
		}
	}()

	id := strings.ToLower(rand.Text()[:8])
	var remote store.Store
	if o.redis != "" {
		s, err := redisstore.Open(redisstore.Options{URL: o.redis, Role: "worker", ID: id, Hedge: o.hedge, Replicas: o.replicas})
		if err != nil {
			return n, usageError{err}
		}
		n.redis = s
		n.breaker = store.WithBreaker(s, store.BreakerOptions{Faults: 3, Probe: s.Alive, OnStateChange: func(from, to store.BreakerState) {
			if from == store.BreakerClosed || to == store.BreakerClosed { // a probe that fails every other second is no news
				o.logger.Warn("breaker changed", "tier", "redis", "from", from.String(), "to", to.String())
			}
		}})
		n.onClose(func(context.Context) error { return n.breaker.Close() })
		remote = n.breaker
	}
	n.cache, err = tiered.New(tiered.Options{
		Layout: first.Layout(), Remote: remote, HotBytes: o.hotBytes, SpillBytes: o.spillBytes, TTL: o.ttl,
		FetchTimeout: o.fetchTimeout, WritePolicy: o.writePolicy, FillLease: o.fillLease, Encoding: o.encoding, Logger: o.logger,
	})
	if err != nil {
		return n, usageError{inFlags(err)}
	}
	n.onClose(func(ctx context.Context) error {
		if lost := n.cache.Close(ctx); lost > 0 {
			o.logger.Warn("blocks not stored at the end", "blocks", lost)
		}
		return nil
	})

	options := worker.Options{
		Engine: first, Label: o.checkpoints[0].label, Cache: n.cache, OnExpiry: o.onExpiry, Secret: o.secret,
		Gate: o.gate, MaxSequences: o.sequences, MaxQueue: o.queue, MaxSequenceBytes: o.sequenceBytes, Logger: o.logger,
	}
	var rdb redis.UniversalClient
	if o.coordinator != nil {
		url := o.controlRedis
		if url == "" {
			url = o.redis
		}
		if rdb, err = redisstore.Connect(redisstore.Options{URL: url, Role: "control", ID: id, PoolSize: 2}); err != nil {
			return n, usageError{err}
		}
		n.onClose(func(context.Context) error { return rdb.Close() })
		n.watch, err = coordinator.NewWatch(coordinator.WatchOptions{
			Control: coordinator.NewControl(rdb), Model: o.model, Poll: o.poll, Lease: o.lease, Logger: o.logger,
			Info: func() coordinator.Info { return n.info(o) },
			// Before the change is acknowledged, so that the coordinator may believe the acknowledgement.
			OnChange: func(coordinator.View) { n.replica.Refresh() },
		})
		if err != nil {
			return n, usageError{err}
		}
		options.Grants = n.watch
	}
	if n.replica, err = worker.NewReplica(options); err != nil {
		return n, err
	}
	owned = false
	n.onClose(n.replica.Close)
	if n.watch != nil {
		n.watch.Start()
		n.onClose(func(context.Context) error { return n.watch.Close() })
		var wg sync.WaitGroup
		wg.Go(func() {
			register(background, o, checkpoints)
			var again sync.WaitGroup
			again.Go(func() { n.registerAgain(background, o, checkpoints) })
			n.replica.Follow(background, n.watch, checkpoints)
			again.Wait()
		})
		wg.Go(func() { n.recheck(background, o, checkpoints) })
		n.onClose(func(context.Context) error { cancel(); wg.Wait(); return nil })
	}
	return n, nil
}

// identify loads every checkpoint once to learn what its bytes are, and keeps the first.
func (o nodeOptions) identify(ctx context.Context) (first engine.Engine, all []worker.Checkpoint, err error) {
	for i, c := range o.checkpoints {
		if i > 0 && c.identify != nil {
			id, noted, err := c.identify()
			if err != nil {
				return nil, nil, errors.Join(usageError{err}, closeEngine(first))
			}
			if id.Layout != first.Identity().Layout {
				return nil, nil, errors.Join(otherShape(c.label, o.checkpoints[0].label), closeEngine(first))
			}
			if noted {
				o.logger.Debug("digest from a note", "label", c.label, "weights", id.Weights.Short())
			}
			all = append(all, worker.Checkpoint{Label: c.label, Identity: id, Open: c.open}.Verified())
			continue
		}
		e, err := c.open(ctx)
		if err != nil {
			if !errors.Is(err, engine.ErrUnavailable) {
				err = usageError{err}
			}
			return nil, nil, errors.Join(err, closeEngine(first))
		}
		if i == 0 {
			first = e
		} else if err := e.Close(); err != nil {
			return nil, nil, errors.Join(err, closeEngine(first))
		}
		if e.Layout().Digest() != first.Layout().Digest() {
			return nil, nil, errors.Join(otherShape(c.label, o.checkpoints[0].label), closeEngine(first))
		}
		all = append(all, worker.Checkpoint{Label: c.label, Identity: e.Identity(), Open: c.open}.Verified())
	}
	return first, all, nil
}

func otherShape(label, first string) error {
	return usagef("%s has another shape than %s: a worker serves checkpoints of one shape; start another worker for it", label, first)
}

func closeEngine(e engine.Engine) error {
	if e == nil {
		return nil
	}
	return e.Close()
}

// register makes the worker's checkpoints known to the coordinator, the resident one first, and tries until it succeeds: a worker that
// starts before its coordinator serves on its own until then.
func register(ctx context.Context, o nodeOptions, checkpoints []worker.Checkpoint) {
	wait := 100 * time.Millisecond
	complained := false
	for i := 0; i < len(checkpoints); {
		c := checkpoints[i]
		_, err := o.coordinator.Register(ctx, o.model, c.Identity, c.Label)
		if err == nil {
			i++
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if !complained {
			o.logger.Warn("not registered yet", "label", c.Label, "err", err)
			complained = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// registerEvery is how long a checkpoint may be missing in the record before it is registered again.
const registerEvery = 5 * time.Second

// registerAgain puts checkpoints back that the record has lost, until ctx ends: Redis may forget what no coordinator remembers. What this
// worker knows to be revoked it leaves alone, and forgotten as the record may have it: only a version that is missing twice in a row counts.
func (n *node) registerAgain(ctx context.Context, o nodeOptions, checkpoints []worker.Checkpoint) {
	missing := map[block.Variant]bool{}
	for {
		select {
		case <-time.After(registerEvery):
		case <-ctx.Done():
			return
		}
		v := n.watch.View()
		var lost []worker.Checkpoint
		for _, c := range checkpoints {
			variant := c.Identity.Variant()
			known, there := v.Version(variant)
			// A view without a lease is of a record that may be gone.
			gone := v.State != coordinator.Leased || !there
			if gone && missing[variant] && known.State != coordinator.Revoked {
				lost = append(lost, c)
			}
			missing[variant] = gone
		}
		if len(lost) > 0 {
			once, cancel := context.WithTimeout(ctx, registerEvery)
			register(once, o, lost)
			cancel()
		}
	}
}

func (n *node) info(o nodeOptions) coordinator.Info {
	e, label := n.replica.Resident()
	s := n.cache.Stats()
	info := coordinator.Info{Address: o.address, Variant: e.Identity().Variant(), Label: label, Stats: map[string]float64{
		"hot_bytes": float64(s.HotBytes), "hot_hit_blocks": float64(s.HitBlocks["hot"]), "remote_hit_blocks": float64(s.HitBlocks["remote"]),
		"lookup_blocks": float64(s.LookupBlocks), "spill_queue_bytes": float64(s.SpillBytes),
	}}
	if v, ok := n.watch.View().Version(info.Variant); ok {
		info.Declared = v.Declared
	}
	for i, t := range s.Tenants {
		if use := (coordinator.TenantUse{Namespace: t.Namespace, HotBytes: t.HotBytes, StoredBytes: t.StoredBytes}); i < coordinator.MaxTenantUses {
			info.Tenants = append(info.Tenants, use)
		} else { // the last one stands for all others
			last := &info.Tenants[coordinator.MaxTenantUses-1]
			last.Namespace = block.Digest{}
			last.HotBytes, last.StoredBytes = last.HotBytes+use.HotBytes, last.StoredBytes+use.StoredBytes
		}
	}
	for _, c := range o.checkpoints {
		info.Loadable = append(info.Loadable, c.label)
	}
	return info
}

// sickNodes are the servers with a breaker of their own that is not closed: nodes of a cluster, and all if reads are hedged.
func (n *node) sickNodes() []redisstore.NodeState {
	if n.redis == nil {
		return nil
	}
	return slices.DeleteFunc(n.redis.NodeStates(), func(s redisstore.NodeState) bool { return s.State == store.BreakerClosed })
}

// degraded says what is not as it should be, although requests are answered.
func (n *node) degraded() (why []string) {
	e, _ := n.replica.Resident()
	if d, ok := e.(degraded); ok && d.Degraded() != "" {
		why = append(why, d.Degraded())
	}
	if n.breaker != nil && n.breaker.State() != store.BreakerClosed {
		why = append(why, "redis: unavailable, breaker "+n.breaker.State().String())
	}
	for _, node := range n.sickNodes() {
		why = append(why, fmt.Sprintf("redis: node %s unavailable, breaker %v", node.Node, node.State))
	}
	if n.watch != nil {
		if v := n.watch.View(); v.State != coordinator.Leased {
			why = append(why, "control record: "+string(v.State))
		} else if n.cache.View().Access == tiered.AccessNone {
			why = append(why, fmt.Sprintf("variant %v is not active: nothing is cached", e.Identity().Variant()))
		}
	}
	return why
}

func (n *node) onClose(f func(context.Context) error) { n.closers = append(n.closers, f) }

// Close ends everything in the order that loses nothing: follow, watch, requests, spills, connections.
func (n *node) Close(ctx context.Context) error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i](ctx))
	}
	n.closers = nil
	n.cancel()
	return errors.Join(errs...)
}

// labelOf names a checkpoint after its file.
func labelOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".gguf") }
