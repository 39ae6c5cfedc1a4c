package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// NodeState is what the breaker in front of one node of a cluster does.
type NodeState struct {
	Node  string // host:port, or with Sentinel the primary's name
	State store.BreakerState
}

// nodes has a breaker for each node of a cluster, so that one that is sick costs its own keys and no others. They sit in hooks of the
// client's node clients: whatever goes to a node passes, in whatever pipeline it began. A single server needs none, because there the breaker
// around the Store does the same, unless reads are hedged: then that one does not see what replicas made up for.
type nodes struct {
	opts    store.BreakerOptions
	cluster *redis.ClusterClient // nil if the servers are none
	mu      struct {
		sync.Mutex
		all map[string]*node // by name
	}
}

type node struct {
	circuit *store.Circuit
	client  *redis.Client // the last one that was made
	idle    bool          // owned no slots when its circuit was last probed: a failover has taken them
}

func newNodes(o store.BreakerOptions) *nodes {
	n := &nodes{opts: o}
	n.mu.all = map[string]*node{}
	return n
}

// guard puts the breaker of the server called name in front of one of its clients.
func (n *nodes) guard(c *redis.Client, name string) *redis.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.mu.all[name]
	if x == nil {
		opts := n.opts
		opts.Probe = func(ctx context.Context) error { return n.probe(ctx, name) }
		x = &node{circuit: store.NewCircuit(opts)}
		n.mu.all[name] = x
	}
	x.client = c
	c.AddHook(&nodeGuard{x.circuit, fmt.Errorf("node %s: %w", name, store.ErrUnavailable)})
	return c
}

// probe asks a node whose circuit is open how it is, and the others of a cluster meanwhile whether it still owns slots.
func (n *nodes) probe(ctx context.Context, name string) error {
	if n.cluster != nil {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { n.look(ctx) })
	}
	n.mu.Lock()
	c := n.mu.all[name].client
	n.mu.Unlock()
	err := c.Exists(context.WithValue(ctx, inGuard{}, true), aliveKey).Err()
	if !errors.Is(err, redis.ErrClosed) {
		return nodeFault(ctx, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.all[name].client != c {
		return err // the client has made another one meanwhile
	}
	delete(n.mu.all, name) // the client has forgotten the node
	return store.ErrClosed
}

// look learns which nodes own slots now.
func (n *nodes) look(ctx context.Context) {
	var mu sync.Mutex
	owners := map[string]bool{}
	if err := n.cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error { // asks the cluster, unlike other calls
		mu.Lock()
		defer mu.Unlock()
		owners[c.Options().Addr] = true
		return nil
	}); err != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for addr, x := range n.mu.all {
		x.idle = !owners[addr]
	}
}

// stop ends all probes; wait returns when the last one has.
func (n *nodes) stop() (wait func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := slices.Collect(maps.Values(n.mu.all))
	for _, x := range all {
		x.circuit.Stop()
	}
	return func() {
		for _, x := range all {
			x.circuit.Wait()
		}
	}
}

func (n *nodes) states() []NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]NodeState, 0, len(n.mu.all))
	for addr, x := range n.mu.all {
		if s := x.circuit.State(); s == store.BreakerClosed || !x.idle {
			all = append(all, NodeState{addr, s})
		}
	}
	slices.SortFunc(all, func(a, b NodeState) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// NodeStates returns the state of each node's breaker, by name; nothing but for a cluster or with Options.Hedge. A sick node that owns no slots
// any more is left out.
func (s *Store) NodeStates() []NodeState {
	if s.nodes == nil {
		return nil
	}
	return s.nodes.states()
}

// nodeGuard is a hook of one node's client.
type nodeGuard struct {
	circuit     *store.Circuit
	unavailable error
}

// DialHook implements redis.Hook. A failed dial is the failure of the command that wanted it.
func (g *nodeGuard) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (g *nodeGuard) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := g.guard(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
		if errors.Is(err, store.ErrUnavailable) {
			cmd.SetErr(err)
		}
		return err
	}
}

// ProcessPipelineHook implements redis.Hook. Commands of a pipeline that was not sent would look like ones that were answered with nothing: a
// cluster's client gives them the error, another one does not.
func (g *nodeGuard) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sent := false
		err := g.guard(ctx, func(ctx context.Context) error {
			sent = true
			return next(ctx, cmds)
		})
		if !sent {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}

// inGuard marks the context of a call that was let through. What greets a new connection passes the hooks once more, inside of the call that
// needs the connection: it must not be taken for a second probe.
type inGuard struct{}

// guard returns call's own error, which the client looks into for redirections, or ErrUnavailable.
func (g *nodeGuard) guard(ctx context.Context, call func(context.Context) error) error {
	if ctx.Value(inGuard{}) != nil {
		return call(ctx)
	}
	ctx = context.WithValue(ctx, inGuard{}, true)
	called := false
	var err error
	refused := g.circuit.Guard(ctx, func() error {
		called = true
		err = call(ctx)
		return nodeFault(ctx, err)
	})
	switch {
	case called:
		return err
	case errors.Is(refused, store.ErrUnavailable):
		return g.unavailable
	}
	return refused // ctx has ended
}

// nodeFault is what an error says about the node: an answer, be it no or a redirection, says that it is well.
func nodeFault(ctx context.Context, err error) error {
	if _, answered := errors.AsType[redis.Error](err); answered && !redis.IsLoadingError(err) && !redis.IsMasterDownError(err) && !redis.IsClusterDownError(err) {
		return nil
	}
	if err == nil {
		return nil
	}
	return classify(ctx, err)
}

// blame marks a fault of a node that has a breaker of its own, as opposed to one of the whole cluster, whose state cannot be had.
func (s *Store) blame(ctx context.Context, key string, err error) error {
	if s.lanes.cluster == nil || !store.IsFault(classify(ctx, err)) {
		return err
	}
	if _, unknown := s.lanes.cluster.MasterForKey(context.WithoutCancel(ctx), key); unknown != nil {
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrNode, err)
}

// aliveKey is of no value. It takes a command with a key to notice that a cluster is down, or that a user may not read.
const aliveKey = "kvt1:d:alive"

// Alive returns nil if the servers answer questions about values, as far as one question can tell: for store.BreakerOptions.Probe.
func (s *Store) Alive(ctx context.Context) error {
	_, err := s.Lead(ctx, []string{aliveKey})
	return err
}
