package redisstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// opError names the operation and the key. It is a type, not fmt.Errorf, because misses are frequent and most are never printed.
type opError struct {
	op, key string
	err     error
}

func (e *opError) Error() string {
	if e.key == "" {
		return "redisstore: " + e.op + ": " + e.err.Error()
	}
	return "redisstore: " + e.op + " " + strconv.Quote(e.key) + ": " + e.err.Error()
}

func (e *opError) Unwrap() error { return e.err }

// wrap classifies err, which must be an error of the client, and names the operation and the key.
func wrap(ctx context.Context, op, key string, err error) error {
	return &opError{op, key, classify(ctx, err)}
}

// classify maps the client's errors to those of package store. What it does not know stays as it is and is a fault: time-outs,
// lost connections, refused dials, LOADING, CLUSTERDOWN, and refusals by access lists.
func classify(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, redis.Nil):
		return store.ErrNotFound
	case errors.Is(err, redis.ErrClosed):
		return store.ErrClosed
	case isTooSmall(err):
		return store.ErrTooLarge
	case redis.IsOOMError(err):
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	case ctx.Err() != nil && !errors.Is(err, ctx.Err()):
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case errors.Is(err, os.ErrDeadlineExceeded) && expired(ctx):
		// the socket's deadline is the context's, and may fire a moment earlier
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

func expired(ctx context.Context) bool {
	_, has := ctx.Deadline()
	return has
}

// isTooSmall recognises the client's answer to a value that exceeds the buffer, for which it has no sentinel.
func isTooSmall(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "redis: buffer too small")
}
