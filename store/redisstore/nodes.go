package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	life    context.Context      // of the store
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

func newNodes(life context.Context, o store.BreakerOptions) *nodes {
	n := &nodes{opts: o, life: life}
	n.mu.all = map[string]*node{}
	return n
}

// guard puts the breaker of the server called name in front of one of its clients.
func (n *nodes) guard(c *redis.Client, name string, l login) *redis.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.prune()
	x := n.mu.all[name]
	if x == nil {
		opts := n.opts
		opts.Probe = func(ctx context.Context) error { return n.probe(ctx, name) }
		x = &node{circuit: store.NewCircuit(opts)}
		n.mu.all[name] = x
	}
	x.client = c
	c.AddHook(&front{login: l, life: n.life, circuit: x.circuit, unavailable: fmt.Errorf("node %s: %w", name, store.ErrUnavailable)})
	return c
}

// prune forgets the nodes that the client has: those that left the cluster. mu is held.
func (n *nodes) prune() {
	for name, x := range n.mu.all {
		if isClosed(x.client) {
			x.circuit.Stop()
			delete(n.mu.all, name)
		}
	}
}

// isClosed reports whether the client has closed c, which belongs to one node. Nothing is sent.
func isClosed(c *redis.Client) bool {
	ended, cancel := context.WithCancel(context.WithValue(context.Background(), inGuard{}, true))
	cancel()
	return errors.Is(c.Ping(ended).Err(), redis.ErrClosed)
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
	err := c.Exists(context.WithValue(ctx, inGuard{}, true), n.keyOn(ctx, c)).Err()
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

// keyOn returns a key whose slot c owns, as far as one can be found: where to look for another node's keys a node may tell even while it cannot
// answer about its own.
func (n *nodes) keyOn(ctx context.Context, c *redis.Client) string {
	const tries = 256
	for i := range tries {
		if n.cluster == nil {
			break
		}
		key := aliveKey + ":" + strconv.Itoa(i)
		if owner, err := n.cluster.MasterForKey(ctx, key); err != nil || owner == c {
			return key
		}
	}
	return aliveKey
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
	n.prune()
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

// nodeFault is what an error says about the node: one that sends elsewhere is well.
func nodeFault(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if code := replyCode(err); code == "MOVED" || code == "ASK" || code == "TRYAGAIN" || code == "CROSSSLOT" {
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
	if err == nil {
		s.warm() // who asks has been refused, and those who come next want connections
	}
	return err
}
