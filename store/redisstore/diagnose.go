package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// diagnose names a TLS mismatch that shows as nothing but a lost or silent connection: a server with TLS hangs up on a client without, and a
// server without waits for the end of the line that the handshake never has. It asks the server once in the other way, within ctx and
// Options.DialTimeout, and only while no call has ever succeeded.
func (s *Store) diagnose(ctx context.Context, err error) error {
	lost := errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		strings.Contains(err.Error(), "connection reset by peer")
	if !lost || s.answered.Load() || ctx.Err() != nil || s.opts.Mode == Sentinel || strings.HasPrefix(s.opts.Addrs[0], "/") {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.DialTimeout)
	defer cancel()
	conn, dialErr := new(net.Dialer).DialContext(ctx, "tcp", s.opts.Addrs[0])
	if dialErr != nil {
		return err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	if s.opts.TLS == nil {
		// Nothing is sent over this connection, so that it does not matter who is at the other end.
		if tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil {
			return fmt.Errorf("%w: the server speaks TLS: %w", ErrTLS, err)
		}
		return err
	}
	first := make([]byte, 1)
	if _, writeErr := conn.Write([]byte("PING\r\n")); writeErr != nil {
		return err
	}
	if _, readErr := io.ReadFull(conn, first); readErr == nil && (first[0] == '+' || first[0] == '-') {
		return fmt.Errorf("%w: the server does not speak TLS: %w", ErrTLS, err)
	}
	return err
}

// heard notes that the settings work.
func (s *Store) heard() {
	if !s.answered.Load() {
		s.answered.Store(true)
	}
}
