package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

// HeartbeatTTL is how long a worker counts as alive after a heartbeat.
const HeartbeatTTL = 10 * time.Second

// Beat stores a worker's heartbeat.
func (c *Control) Beat(ctx context.Context, h Heartbeat, now time.Time) error {
	for name, x := range h.Stats {
		if math.IsNaN(x) || math.IsInf(x, 0) { // JSON has no word for them
			return fmt.Errorf("%w: heartbeat: stat %.64q is not a number", ErrInvalid, name)
		}
	}
	if err := h.validate(); err != nil {
		return err
	}
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("%w: heartbeat: %w", ErrInvalid, err)
	}
	if len(b) > MaxHeartbeatBytes {
		return fmt.Errorf("%w: heartbeat of %d bytes, at most %d", ErrInvalid, len(b), MaxHeartbeatBytes)
	}
	_, err = c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, beatPrefix+h.Incarnation, b, HeartbeatTTL)
		p.ZAdd(ctx, workersKey, redis.Z{Score: float64(now.UnixMilli()), Member: h.Incarnation})
		return nil
	})
	if err != nil {
		return fmt.Errorf("coordinator: heartbeat: %w", err)
	}
	return nil
}

// Leave removes a worker that shuts down.
func (c *Control) Leave(ctx context.Context, incarnation string) error {
	_, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, beatPrefix+incarnation)
		p.ZRem(ctx, workersKey, incarnation)
		return nil
	})
	return err
}

// Workers reads the heartbeats of all living workers, of every model, and forgets the dead. Damaged heartbeats are skipped: who
// writes them can only make itself invisible.
func (c *Control) Workers(ctx context.Context) ([]Heartbeat, error) {
	names, err := c.rdb.ZRevRange(ctx, workersKey, 0, maxWorkers-1).Result()
	if err != nil {
		return nil, fmt.Errorf("coordinator: list workers: %w", err)
	}
	if len(names) == 0 {
		return nil, nil
	}
	// Pipelined single-key reads, each capped: MGET would read values of any size.
	replies := make([]*redis.StringCmd, len(names))
	_, err = c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, n := range names {
			replies[i] = p.GetRange(ctx, beatPrefix+n, 0, MaxHeartbeatBytes)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("coordinator: read heartbeats: %w", err)
	}
	var beats []Heartbeat
	var gone []any
	for i, n := range names {
		raw, err := replies[i].Bytes()
		if err != nil || len(raw) == 0 || validateName("incarnation", n) != nil {
			gone = append(gone, n)
			continue
		}
		var h Heartbeat
		// Unknown fields are welcome here: a newer worker's heartbeat still acknowledges.
		if len(raw) <= MaxHeartbeatBytes && json.Unmarshal(raw, &h) == nil && h.Incarnation == n && h.validate() == nil {
			beats = append(beats, h)
		}
	}
	if len(gone) > 0 {
		// A worker that beats at this very moment is listed again by its next heartbeat.
		if err := c.rdb.ZRem(ctx, workersKey, gone...).Err(); err != nil {
			return nil, fmt.Errorf("coordinator: forget dead workers: %w", err)
		}
	}
	return beats, nil
}
