package testredis

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/redis/go-redis/v9"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// slots is how many hash slots Redis Cluster has.
const slots = 16384

// StartCluster runs a cluster of masters without replicas in one container, removed when the test ends, and returns its address as
// redis+cluster://host:port,…. One container, because its nodes then find each other under the same address and ports as
// the test does. It skips or fails the test when there is no container engine.
func StartCluster(tb testing.TB, masters int) string {
	tb.Helper()
	return "redis+cluster://" + strings.Join(startCluster(tb, masters, 0), ",")
}

// StartReplicatedCluster is StartCluster with a replica for each master, which takes over within seconds. It returns the addresses of masters
// and then replicas as well. A node ends by SHUTDOWN.
func StartReplicatedCluster(tb testing.TB, masters int) (url string, nodes []string) {
	tb.Helper()
	nodes = startCluster(tb, masters, masters)
	return "redis+cluster://" + strings.Join(nodes, ","), nodes
}

func startCluster(tb testing.TB, masters, replicas int) []string {
	tb.Helper()
	Need(tb)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()

	var script strings.Builder
	var addrs []string
	ports := make(network.PortMap)
	var exposed []string
	for i := range masters + replicas {
		port, err := freePort()
		if err != nil {
			tb.Fatalf("testredis: %v", err)
		}
		fmt.Fprintf(&script, "%s --save '' --port %s --cluster-enabled yes --cluster-config-file /tmp/%s.conf --cluster-port %d "+
			"--cluster-announce-ip 127.0.0.1 --cluster-node-timeout 2000 --protected-mode no & ", serverName(Image()), port, port, 17001+i)
		addrs = append(addrs, "127.0.0.1:"+port)
		exposed = append(exposed, port+"/tcp")
		ports[network.MustParsePort(port+"/tcp")] = []network.PortBinding{{HostPort: port}}
	}
	ctr, err := testcontainers.Run(ctx, Image(),
		testcontainers.WithEntrypoint("sh", "-c", script.String()+"wait"),
		testcontainers.WithExposedPorts(exposed...),
		testcontainers.WithHostConfigModifier(func(h *container.HostConfig) { h.PortBindings = ports }),
		testcontainers.WithWaitStrategy(wait.ForLog("Ready to accept connections").WithOccurrence(masters+replicas)),
		testcontainers.WithLogger(quiet{}))
	testcontainers.CleanupContainer(tb, ctr, testcontainers.StopTimeout(0)) // the data is gone anyway, and a shell does not pass SIGTERM on
	if err == nil {
		err = join(ctx, addrs, masters)
	}
	if err != nil {
		tb.Fatalf("testredis: cluster: %v", err)
	}
	return addrs
}

// join deals out the slots to the first nodes, introduces all to each other, makes the rest replicas, and waits until all of them agree.
func join(ctx context.Context, addrs []string, masters int) error {
	var clients []*redis.Client
	for i, addr := range addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		clients = append(clients, c)
		if i >= masters {
			continue
		}
		from, to := i*slots/masters, (i+1)*slots/masters-1
		if err := c.ClusterAddSlotsRange(ctx, from, to).Err(); err != nil {
			return err
		}
	}
	for i, addr := range addrs[1:] {
		_, port, _ := strings.Cut(addr, ":")
		// the bus port is not the default one, so that it must be said
		if err := clients[0].Do(ctx, "cluster", "meet", "127.0.0.1", port, 17002+i).Err(); err != nil {
			return err
		}
	}
	for _, c := range clients {
		for {
			info, err := c.ClusterInfo(ctx).Result()
			if err == nil && strings.Contains(info, "cluster_state:ok") &&
				strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(addrs))) {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("the nodes do not agree: %w", ctx.Err())
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for i := masters; i < len(clients); i++ {
		id, err := clients[i-masters].ClusterMyID(ctx).Result()
		if err == nil {
			err = clients[i].ClusterReplicate(ctx, id).Err()
		}
		for err == nil && !strings.Contains(clients[i].Info(ctx, "replication").Val(), "master_link_status:up") {
			if err = ctx.Err(); err == nil {
				time.Sleep(50 * time.Millisecond)
			}
		}
		if err != nil {
			return fmt.Errorf("replica %d: %w", i, err)
		}
	}
	return nil
}
