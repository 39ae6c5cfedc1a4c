package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// ErrVersion means that a server is older than what this package is tested with: Redis 7.0, which Debian 12 and Ubuntu 24.04 have, or Valkey 8.
var ErrVersion = errors.New("redisstore: server too old, need Redis 7.0 or Valkey 8 or later")

// ErrPolicy means that a server's maxmemory-policy is unsafe: under memory pressure it evicts keys that carry no TTL, and with them the
// control records that keep stale K/V from being served.
var ErrPolicy = errors.New("redisstore: unsafe maxmemory-policy; " + wantMemory)

// Server is what Check learnt about one server. Fields that the server would not tell are empty or -1.
type Server struct {
	// Addr is host:port or a path.
	Addr string
	// Product is redis, valkey, or what the server calls itself.
	Product string
	// Version is the product's version, such as 8.0.2.
	Version string
	// MaxMemoryBytes is maxmemory; 0 means unbounded, -1 unknown.
	MaxMemoryBytes int64
	// Policy is maxmemory-policy.
	Policy string
	// AppendOnly says that the server writes an append-only file.
	AppendOnly bool
}

// Report is the result of Check.
type Report struct {
	// Servers are those that hold keys, by address.
	Servers []Server
	// Warnings are sentences for an operator, each with the server's address. None means that all is as recommended.
	Warnings []string
}

// Check asks every master what it is and how it is configured. A server that refuses to tell, because of its access list or
// because it is a fake, gives a warning instead of an error. Errors: ErrVersion and ErrPolicy joined for each server that is too old or
// evicts control keys, or the failure to reach one; the report holds what is known even then. For start-up and inspection, not for requests.
func (s *Store) Check(ctx context.Context) (Report, error) {
	if err := s.usable(ctx); err != nil {
		return Report{}, &opError{"check", "", err}
	}
	var mu sync.Mutex
	var r Report
	var unfit []error
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		if err := c.Ping(ctx).Err(); err != nil {
			return err
		}
		server, unknown := inspect(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		r.Servers = append(r.Servers, server)
		for _, w := range append(unknown, server.warnings()...) {
			r.Warnings = append(r.Warnings, server.Addr+": "+w)
		}
		if server.tooOld() {
			unfit = append(unfit, fmt.Errorf("%w: %s is %s %s", ErrVersion, server.Addr, server.Product, server.Version))
		}
		if strings.HasPrefix(server.Policy, "allkeys-") && server.MaxMemoryBytes != 0 {
			unfit = append(unfit, fmt.Errorf("%w: %s has %s", ErrPolicy, server.Addr, server.Policy))
		}
		return nil
	})
	slices.SortFunc(r.Servers, func(a, b Server) int { return strings.Compare(a.Addr, b.Addr) })
	slices.Sort(r.Warnings)
	if err != nil {
		return r, wrap(ctx, "check", "", s.diagnose(ctx, err))
	}
	return r, errors.Join(unfit...)
}

// inspect asks one server. INFO is asked before CONFIG because fewer access lists refuse it.
func inspect(ctx context.Context, c *redis.Client) (s Server, unknown []string) {
	s = Server{Addr: c.Options().Addr, MaxMemoryBytes: -1}
	hello, err := c.Do(ctx, "hello", 2).Slice()
	if err == nil {
		for i := 0; i+1 < len(hello); i += 2 {
			value, _ := hello[i+1].(string)
			switch hello[i] {
			case "server":
				s.Product = value
			case "version":
				s.Version = value
			}
		}
	}
	if s.Version == "" {
		unknown = append(unknown, "the server does not tell its version (need Redis 7.0 or Valkey 8)")
	}

	memory := infoOf(ctx, c, "memory")
	limit, policy := memory["maxmemory"], memory["maxmemory_policy"]
	if limit == "" || policy == "" {
		config, _ := c.ConfigGet(ctx, "maxmemory*").Result() // empty if refused
		limit, policy = config["maxmemory"], config["maxmemory-policy"]
	}
	if n, err := strconv.ParseInt(limit, 10, 64); err == nil {
		s.MaxMemoryBytes = n
	}
	s.Policy = policy
	if s.MaxMemoryBytes < 0 || policy == "" {
		unknown = append(unknown, "the server does not tell maxmemory and maxmemory-policy (INFO and CONFIG are refused); "+wantMemory)
	}
	s.AppendOnly = infoOf(ctx, c, "persistence")["aof_enabled"] == "1"
	return s, unknown
}

// infoOf returns a section of INFO, empty if the server refuses.
func infoOf(ctx context.Context, c *redis.Client, section string) map[string]string {
	text, _ := c.Info(ctx, section).Result()
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[k] = v
		}
	}
	return fields
}

const wantMemory = "set maxmemory, and maxmemory-policy to volatile-lfu or volatile-lru"

func (s Server) warnings() []string {
	var w []string
	if s.MaxMemoryBytes == 0 {
		w = append(w, "maxmemory is not set, so that values fill the machine; "+wantMemory)
	}
	switch {
	case s.Policy == "", s.Policy == "volatile-lfu", s.Policy == "volatile-lru":
	case strings.HasPrefix(s.Policy, "allkeys-"):
		w = append(w, "maxmemory-policy "+s.Policy+" evicts control keys too; "+wantMemory)
	case s.Policy == "noeviction":
		w = append(w, "maxmemory-policy noeviction refuses new values when memory is full; "+wantMemory)
	default:
		w = append(w, "maxmemory-policy "+s.Policy+" ignores how often values are used; "+wantMemory)
	}
	if s.AppendOnly {
		w = append(w, "appendonly is on, which writes every value to disk; values are a cache and need no file")
	}
	return w
}

// tooOld compares what is known: a server that hides its version or calls itself something else gets the benefit of the doubt.
func (s Server) tooOld() bool {
	major, _, _ := strings.Cut(s.Version, ".")
	x, err := strconv.Atoi(major)
	if err != nil {
		return false
	}
	switch s.Product {
	case "redis":
		return x < 7
	case "valkey":
		return x < 8
	default:
		return false
	}
}
