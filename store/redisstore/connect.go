package redisstore

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Connect returns a client with this package's settings for callers that need other commands than a Store offers, such as the
// control plane, which gets a client of its own so that bulk transfers never delay it. It does not dial. The caller closes it.
// It returns all problems of o joined.
func Connect(o Options) (redis.UniversalClient, error) {
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	return o.connect(redis.NewClient), nil
}

// resolve returns o with its defaults, or all its problems.
func (o Options) resolve() (Options, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return o, fmt.Errorf("redisstore: options: %w", err)
	}
	return o, nil
}

// connect makes the client of o.Mode, nodeClient those of a cluster's nodes. Why these settings: nothing is retried, because a late answer is a miss and retries
// belong to the breaker; a failed dial is not repeated, so that a dead server costs less than a millisecond; pipelines
// share the main pool, whose 32 KiB buffers copy less than the 128 KiB ones of a pipeline pool; RESP2, because RESP3 looks
// for push messages before every reply.
func (o Options) connect(nodeClient func(*redis.Options) *redis.Client) redis.UniversalClient {
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch o.Mode {
	case Cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Addrs, ClientName: o.clientName(), Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: quiet, DisableRoutingPolicies: true,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, MaxRedirects: 3,
			MinRetryBackoff: time.Millisecond, MaxRetryBackoff: 8 * time.Millisecond,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1,
			NewClient: nodeClient, ClusterStateReloadInterval: 5 * time.Second, FailingTimeoutSeconds: 3,
		})
	case Sentinel:
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: o.MasterName, SentinelAddrs: o.Addrs, SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
			ClientName: o.clientName(), Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1,
		})
	default:
		network, tlsConfig := "tcp", o.TLS
		if strings.HasPrefix(o.Addrs[0], "/") {
			network = "unix"
		} else if tlsConfig != nil && tlsConfig.ServerName == "" {
			tlsConfig = withServerName(tlsConfig, o.Addrs[0])
		}
		return redis.NewClient(&redis.Options{
			Network: network, Addr: o.Addrs[0], ClientName: o.clientName(), Username: o.Username, Password: o.Password, TLSConfig: tlsConfig,
			Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: quiet,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1,
		})
	}
}

func withServerName(c *tls.Config, addr string) *tls.Config {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return c
	}
	c = c.Clone()
	c.ServerName = host
	return c
}
