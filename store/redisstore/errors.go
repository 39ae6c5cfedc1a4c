package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// What is wrong with how a store was set up, as opposed to how it fares. All of them are faults: until somebody mends the settings the
// tier is not there.
var (
	// ErrAuth means that the server wants a user and password, or others, or that the user may not run a command.
	ErrAuth = errors.New("redisstore: not allowed; check user and password in the URL, and that the user may run " +
		"GET, SET, EXISTS, STRLEN, PTTL, PERSIST, PEXPIRE, UNLINK, WATCH, MULTI, EXEC, SCAN and PING on kvt1:*")
	// ErrTLS means that one side speaks TLS and the other does not, or that the server's certificate is not trusted.
	ErrTLS = errors.New("redisstore: TLS mismatch; use rediss:// for a server with TLS, redis:// for one without, " +
		"and a certificate that this machine trusts")
	// ErrMode means that the URL names another kind of server than the one that answers.
	ErrMode = errors.New("redisstore: not that kind of server; use redis:// for one server, redis+cluster:// for a cluster, " +
		"redis+sentinel://…/master for sentinels")
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

// refusals are replies of a server that is well, by their code, which is stable.
var refusals = map[string]error{
	"WRONGTYPE":  store.ErrNotValue,
	"OOM":        store.ErrFull,
	"READONLY":   store.ErrReadOnly, // a replica
	"MISCONF":    store.ErrReadOnly, // snapshots fail
	"NOREPLICAS": store.ErrReadOnly, // fewer replicas than min-replicas-to-write
}

// replyCode is the first word of an error that the server has sent, or empty.
func replyCode(err error) string {
	reply, ok := errors.AsType[redis.Error](err)
	if !ok || errors.Is(err, redis.Nil) {
		return ""
	}
	code, _, _ := strings.Cut(reply.Error(), " ")
	return code
}

// classify maps the client's errors to those of package store. What it does not know stays as it is and is a fault: time-outs of a silent
// server, lost connections, refused dials, LOADING, MASTERDOWN, CLUSTERDOWN, BUSY, too many clients, and what is misconfigured.
func classify(ctx context.Context, err error) error {
	if kind := misconfigured(err); kind != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	if is := refusals[replyCode(err)]; is != nil {
		return fmt.Errorf("%w: %w", is, err)
	}
	switch {
	case errors.Is(err, redis.Nil):
		return store.ErrNotFound
	case errors.Is(err, redis.ErrClosed):
		return store.ErrClosed
	case isTooSmall(err):
		return store.ErrTooLarge
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

// misconfigured recognises settings that cannot work, nil for anything else. The client has sentinels for few of them, so that it
// goes by the server's error codes, which are stable.
func misconfigured(err error) error {
	if errors.Is(err, redis.Nil) && !strings.Contains(err.Error(), "sentinel") || errors.Is(err, ErrTLS) {
		return nil // the common case first
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return ErrTLS
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return ErrTLS
	}
	text := err.Error()
	has := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
	}
	switch {
	case has("NOAUTH ", "WRONGPASS ", "NOPERM ", "ERR AUTH ", "ERR invalid password"):
		return ErrAuth
	case has("MOVED ", "ASK ", "CROSSSLOT ", "cluster support disabled", "all sentinels specified in configuration are unreachable",
		"unknown command 'sentinel'", "unknown command 'SENTINEL'"):
		return ErrMode
	case has("tls: "):
		return ErrTLS
	}
	return nil
}
