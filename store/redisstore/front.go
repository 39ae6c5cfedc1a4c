package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/store"
)

// front stands in front of one server: a hook of its client. It opens connections that are ready for use, refuses what a breaker refuses, and
// finds out whether a deadline that passed was the server's fault.
type front struct {
	login       login
	life        context.Context       // the end of which ends attempts to connect; nil for none
	plain       bool                  // no more than connections that are ready
	circuit     *store.Circuit        // nil for none
	unavailable error                 // what it refuses with
	cut         atomic.Pointer[error] // why the last attempt to connect has failed; nil if it has not
	spoken      atomic.Int64          // when something was sent last, in Unix nanoseconds
	waiting     atomic.Int64          // when the first of what has been sent since the server was heard was sent; 0 if nothing has
}

const (
	// silence is how long a server may leave everything unanswered before it is to blame for deadlines that pass: far more than a round trip.
	silence = 250 * time.Millisecond
	// memory is after which pause what was never answered is forgotten.
	memory = time.Second
)

// errConnect marks what went wrong with a new connection: that is the server's doing.
var errConnect = errors.New("connecting")

// speaks notes that something is sent.
func (f *front) speaks() {
	now := time.Now().UnixNano()
	if last := f.spoken.Swap(now); f.waiting.Load() == 0 || now-last > int64(memory) {
		f.waiting.Store(now)
	}
}

// hears notes that something has come.
func (f *front) hears() {
	if f.waiting.Load() != 0 {
		f.waiting.Store(0)
	}
}

// silent reports whether the server answers nothing and nobody.
func (f *front) silent() bool {
	since := f.waiting.Load()
	return since != 0 && time.Now().UnixNano()-since >= int64(silence)
}

// inGuard marks the context of a call that was let through. What greets a new connection passes the hooks once more, inside of the call that
// needs the connection: it must not be taken for a second probe.
type inGuard struct{}

// DialHook implements redis.Hook. The client dials in the background: whoever needed the connection and could not wait leaves it to the next.
func (f *front) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if f.life != nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(f.life, cancel)()
		}
		c, err := next(ctx, network, addr)
		if err == nil {
			c, err = f.login.greet(ctx, c, f)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", errConnect, err)
			f.cut.Store(&err)
			return nil, err
		}
		f.cut.Store(nil)
		return c, nil
	}
}

// ProcessHook implements redis.Hook.
func (f *front) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	if f.plain {
		return nil
	}
	return func(ctx context.Context, cmd redis.Cmder) error {
		err, changed := f.pass(ctx, func(ctx context.Context) error { return next(ctx, cmd) })
		if changed {
			cmd.SetErr(err)
		}
		return err
	}
}

// ProcessPipelineHook implements redis.Hook. Commands of a pipeline that was not sent would look like ones that were answered with nothing: a
// cluster's client gives them the error, another one does not.
func (f *front) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	if f.plain {
		return nil
	}
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var own error // the client's
		sent := false
		err, changed := f.pass(ctx, func(ctx context.Context) error {
			sent = true
			own = next(ctx, cmds)
			return own
		})
		if changed {
			for _, cmd := range cmds {
				if !sent || cmd.Err() == own { //nolint:errorlint // the client gives all commands the same one
					cmd.SetErr(err)
				}
			}
		}
		return err
	}
}

// pass returns call's own error, which the client looks into for redirections, or what it has been changed to.
func (f *front) pass(ctx context.Context, call func(context.Context) error) (err error, changed bool) { //nolint:revive // changed belongs to err
	if ctx.Value(inGuard{}) != nil {
		return call(ctx), false
	}
	run := func() error {
		own := call(ctx)
		err = f.judge(ctx, own)
		changed = err != own //nolint:errorlint // identity is what is asked
		if ctx.Value(detached{}) != nil {
			return nodeFault(context.WithoutCancel(ctx), err) // the server's silence counts although the caller has left
		}
		return nodeFault(ctx, err)
	}
	if f.circuit == nil {
		_ = run()
		return err, changed
	}
	ctx = context.WithValue(ctx, inGuard{}, true)
	called := false
	refused := f.circuit.Guard(ctx, func() error {
		called = true
		return run()
	})
	switch {
	case called:
		return err, changed
	case errors.Is(refused, store.ErrUnavailable):
		return f.unavailable, true
	}
	return fmt.Errorf("%w: %w", store.ErrLate, refused), true // ctx has ended
}

// judge finds out whether the server is to blame for a deadline that passed: only if connections cannot be made, or if it is silent. A server that
// answers others, or that sends the answer slowly, is well.
func (f *front) judge(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	_, network := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, redis.ErrPoolTimeout), !network && ctx.Err() != nil && errors.Is(err, ctx.Err()): // nothing has been sent
		return f.late(timeout(ctx, err), "waiting for a connection")
	case errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errConnect) && !f.silent():
		return fmt.Errorf("%w: the answer was under way: %w", store.ErrLate, timeout(ctx, err))
	}
	return err
}

// late says that err, the end of a context, is nobody's fault, unless it is the server's.
func (f *front) late(err error, what string) error {
	if why := f.cut.Load(); why != nil {
		return fmt.Errorf("%w: %w", err, *why)
	}
	if f.silent() {
		return fmt.Errorf("%w: the server is silent", err)
	}
	return fmt.Errorf("%w: %s: %w", store.ErrLate, what, err)
}

// timeout says in a word that callers know that err is one, and hides from the client that it might be retried.
func timeout(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %v", context.DeadlineExceeded, err) //nolint:errorlint // hidden
}
