package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// ErrInsecure means that the server would be reachable from other machines without asking for a token.
var ErrInsecure = errors.New("httpapi: refusing to listen beyond this machine without a token")

// ValidateListen checks an address such as "127.0.0.1:8080" or ":8080". One that other machines can reach needs a token, or insecure.
func ValidateListen(addr, token string, insecure bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("httpapi: listen address %q: want host:port, such as 127.0.0.1:8080: %w", addr, err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("httpapi: listen address %q: port %q is not a number from 0 to 65535", addr, port)
	}
	if token != "" || insecure || loopback(host) {
		return nil
	}
	return fmt.Errorf("%w: %s; set a token, listen on 127.0.0.1:%s, or pass --insecure if the network itself keeps others out",
		ErrInsecure, addr, port)
}

// loopback goes by the text: what a name resolves to may change, except localhost.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// ListenAndServe is Serve on a TCP address.
func ListenAndServe(ctx context.Context, addr string, h http.Handler, grace time.Duration) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("httpapi: listen: %w", err)
	}
	return Serve(ctx, ln, h, grace)
}

// ErrShutdown is the cause with which the context of a request ends that the server will not wait for.
var ErrShutdown = errors.New("httpapi: the server shuts down")

// farewell is how long handlers may take to say so.
const farewell = 2 * time.Second

// Serve answers requests on ln until ctx ends, then takes no new ones, waits at most grace for those that run, ends the contexts of the rest with
// ErrShutdown, lets them say it, and returns nil. It closes ln. Answers may take as long as they like, since completions are streamed;
// headers may not.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, grace time.Duration) error {
	requests, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("httpapi: serve: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		cut(ErrShutdown) // handlers that watch their context end now
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		if err := srv.Shutdown(last); err != nil {
			_ = srv.Close()
		}
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("httpapi: serve: %w", err)
	}
	return nil
}

// LimitBodies cuts every request's body off after limit bytes. Handlers that use ReadJSON have their own, tighter limit.
func LimitBodies(limit int64, next http.Handler) http.Handler {
	return http.MaxBytesHandler(next, limit)
}
