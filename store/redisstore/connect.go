package redisstore

import (
	"crypto/tls"
	"errors"
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
	if o.Hedge != 0 || len(o.Replicas) > 0 {
		return nil, errors.New("redisstore: options: Hedge and Replicas are for stores: other reads are never hedged")
	}
	o, err := o.resolve()
	if err != nil {
		return nil, err
	}
	return o.connect(greeted, false), nil
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

// guard puts something in front of the client of one server, which name is for people, and returns the client.
type guard func(c *redis.Client, name string, l login) *redis.Client

// guard is the guard of the only server, which has no breaker of its own.
func (f *front) guard(c *redis.Client, _ string, l login) *redis.Client {
	f.login = l
	c.AddHook(f)
	return c
}

// greeted is the guard of clients that are handed out: their connections are ready for use, and nothing else is different.
func greeted(c *redis.Client, _ string, l login) *redis.Client {
	c.AddHook(&front{login: l, plain: true})
	return c
}

// connect makes the client of o.Mode, with g in front of every server. With replicas set it is the one of Sentinel's replicas. Why these
// settings: nothing is retried, because a late answer is a miss and retries belong to the breaker; a failed dial is not repeated, so that a dead server costs less than a millisecond; pipelines
// share the main pool, whose 32 KiB buffers copy less than the 128 KiB ones of a pipeline pool; RESP2, because RESP3 looks
// for push messages before every reply.
func (o Options) connect(g guard, replicas bool) redis.UniversalClient {
	l := login{o.Username, o.Password, o.clientName(), o.Mode == Cluster && o.Hedge > 0}
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	switch o.Mode {
	case Cluster:
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Addrs, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: quiet, DisableRoutingPolicies: true,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, MaxRedirects: 3,
			MinRetryBackoff: time.Millisecond, MaxRetryBackoff: 8 * time.Millisecond,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1, ConnMaxIdleTime: -1,
			NewClient:                  func(o *redis.Options) *redis.Client { return g(redis.NewClient(o), o.Addr, l) },
			ClusterStateReloadInterval: 5 * time.Second, FailingTimeoutSeconds: 3,
		})
	case Sentinel:
		name := o.MasterName
		if replicas {
			name += " (replicas)"
		}
		return g(redis.NewFailoverClient(&redis.FailoverOptions{
			ReplicaOnly: replicas,
			MasterName:  o.MasterName, SentinelAddrs: o.Addrs, SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword,
			Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			Protocol: 2, DisableIdentity: true,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1, ConnMaxIdleTime: -1,
		}), name, l)
	default:
		network, tlsConfig := "tcp", o.TLS
		if strings.HasPrefix(o.Addrs[0], "/") {
			network = "unix"
		} else if tlsConfig != nil && tlsConfig.ServerName == "" {
			tlsConfig = withServerName(tlsConfig, o.Addrs[0])
		}
		return g(redis.NewClient(&redis.Options{
			Network: network, Addr: o.Addrs[0], Username: o.Username, Password: o.Password, TLSConfig: tlsConfig,
			Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: quiet,
			ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
			DialTimeout: o.DialTimeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.PoolTimeout,
			PoolSize: o.PoolSize, PipelinePoolSize: -1, ConnMaxIdleTime: -1,
		}), o.Addrs[0], l)
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
