package redisstore

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Memory is how full one server is.
type Memory struct {
	Addr      string
	UsedBytes int64  // used_memory
	MaxBytes  int64  // maxmemory, 0 for no bound
	Policy    string // maxmemory-policy
}

// Memory asks every master how full it is.
func (s *Store) Memory(ctx context.Context) ([]Memory, error) {
	if err := s.usable(ctx); err != nil {
		return nil, &opError{"memory", "", err}
	}
	var mu sync.Mutex
	var all []Memory
	err := s.eachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		info, err := c.Info(ctx, "memory").Result()
		if err != nil {
			return err
		}
		m := Memory{Addr: c.Options().Addr}
		for line := range strings.Lines(info) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch name {
			case "used_memory":
				m.UsedBytes, _ = strconv.ParseInt(value, 10, 64)
			case "maxmemory":
				m.MaxBytes, _ = strconv.ParseInt(value, 10, 64)
			case "maxmemory_policy":
				m.Policy = value
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		return nil
	})
	if err != nil {
		return nil, wrap(ctx, "memory", "", s.diagnose(ctx, err))
	}
	slices.SortFunc(all, func(a, b Memory) int { return strings.Compare(a.Addr, b.Addr) })
	return all, nil
}
