package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// NodeState is what the breaker in front of one node of a cluster does.
type NodeState struct {
	Node  string // host:port
	State store.BreakerState
}

// nodes has a breaker for each node of a cluster, so that one that is sick costs its own keys and no others. They sit in hooks of the
// client's node clients: whatever goes to a node passes, in whatever pipeline it began. A single server needs none: there the breaker around
// the Store does the same.
type nodes struct {
	opts store.BreakerOptions
	mu   struct {
		sync.Mutex
		circuits map[string]*store.Circuit // by address; kept when a node leaves, there are few
	}
}

func newNodes(o store.BreakerOptions) *nodes {
	n := &nodes{opts: o}
	n.mu.circuits = map[string]*store.Circuit{}
	return n
}

// client makes the client of one node.
func (n *nodes) client(o *redis.Options) *redis.Client {
	c := redis.NewClient(o)
	n.mu.Lock()
	defer n.mu.Unlock()
	circuit := n.mu.circuits[o.Addr]
	if circuit == nil {
		circuit = store.NewCircuit(n.opts)
		n.mu.circuits[o.Addr] = circuit
	}
	c.AddHook(&nodeGuard{circuit, fmt.Errorf("node %s: %w", o.Addr, store.ErrUnavailable)})
	return c
}

// deserted is for how long nobody may have asked a node that could be asked, until its breaker says nothing about the cluster any more: after
// a failover the client forgets the node that is gone, and its breaker would stay open for ever.
const deserted = 5 * time.Second

func (n *nodes) states() []NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]NodeState, 0, len(n.mu.circuits))
	for addr, c := range n.mu.circuits {
		if c.Overdue() < deserted {
			all = append(all, NodeState{addr, c.State()})
		}
	}
	slices.SortFunc(all, func(a, b NodeState) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// NodeStates returns the state of each node's breaker, by address; nothing but for a cluster. Nodes that nobody asks any more are left out.
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

// ProcessPipelineHook implements redis.Hook. The client gives the error of a pipeline that was not sent to its commands.
func (g *nodeGuard) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return g.guard(ctx, func(ctx context.Context) error { return next(ctx, cmds) })
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
	if s.nodes == nil || !store.IsFault(classify(ctx, err)) {
		return err
	}
	if _, unknown := s.lanes.cluster.MasterForKey(context.WithoutCancel(ctx), key); unknown != nil {
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrNode, err)
}
