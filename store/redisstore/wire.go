package redisstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"
)

// login is what a new connection begins with. The client would send it when the connection is first used, in two or three round trips, within
// the deadline of whoever uses it: on a slow link no question could be answered in time, and each would have the next begin anew. So it
// is sent in one round trip by whoever dials, which is in the background, and the client is given the reply that the server has already sent.
type login struct {
	username, password, name string
	readOnly                 bool // a cluster's replicas refuse to read otherwise, and to masters it means nothing
}

// greet logs in over c and returns it, ready for use. What goes and comes over it is noted in f.
func (l login) greet(ctx context.Context, c net.Conn, f *front) (net.Conn, error) {
	f.speaks()
	reply, err := l.hello(ctx, c)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("login: %w", err)
	}
	f.hears()
	w := &wire{Conn: c, front: f, hello: reply}
	if sys, ok := c.(syscall.Conn); ok {
		return &sysWire{w, sys}, nil // by which the client sees that the server has hung up
	}
	return w, nil
}

// hello returns the server's reply to HELLO, as it came.
func (l login) hello(ctx context.Context, c net.Conn) ([]byte, error) {
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end)
		defer func() { _ = c.SetDeadline(time.Time{}) }()
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	args := []string{"hello", "2"}
	if l.password != "" {
		user := l.username
		if user == "" {
			user = "default"
		}
		args = append(args, "auth", user, l.password)
	}
	if l.name != "" {
		args = append(args, "setname", l.name)
	}
	question := appendCommand(nil, args...)
	if l.readOnly {
		question = appendCommand(question, "readonly")
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(c, 4<<10)
	reply, err := appendReply(nil, r, 0)
	if err == nil && l.readOnly {
		var second []byte
		if second, err = appendReply(nil, r, 0); err == nil && second[0] == '-' && reply[0] != '-' {
			err = errors.New(string(bytes.TrimSpace(second[1:])))
		}
	}
	return reply, err
}

func appendCommand(b []byte, args ...string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// What a greeting may be at most: a server says its name, version and modules.
const (
	replyBytes = 64 << 10
	replyDepth = 4
)

var errGreeting = errors.New("the server does not speak Redis' protocol")

// appendReply appends one reply of r to b, as it is.
func appendReply(b []byte, r *bufio.Reader, depth int) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return b, err
	}
	if b = append(b, line...); len(line) < 3 || line[len(line)-2] != '\r' || len(b) > replyBytes || depth > replyDepth {
		return b, errGreeting
	}
	kind, number := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+', '-', ':':
		return b, nil
	case '$', '*':
	default:
		return b, errGreeting
	}
	n, err := strconv.Atoi(number)
	if err != nil || n > replyBytes {
		return b, errGreeting
	}
	if kind == '$' && n >= 0 {
		from := len(b)
		if from+n+2 > replyBytes {
			return b, errGreeting
		}
		b = append(b, make([]byte, n+2)...)
		_, err := io.ReadFull(r, b[from:])
		return b, err
	}
	for ; kind == '*' && n > 0; n-- {
		if b, err = appendReply(b, r, depth+1); err != nil {
			return b, err
		}
	}
	return b, nil
}

// wire is a connection that has been greeted. Should the client begin with anything else than HELLO alone, it is passed on as if nothing had
// been.
type wire struct {
	net.Conn
	front *front
	hello []byte // the reply to HELLO, until the client has read it
	asked bool   // the client has sent HELLO
}

// sysWire lets the client look at the socket.
type sysWire struct {
	*wire
	syscall.Conn
}

func (w *wire) Write(p []byte) (int, error) {
	if w.hello != nil && !w.asked {
		if isHello(p) {
			w.asked = true
			return len(p), nil
		}
		w.hello = nil
	}
	w.front.speaks()
	return w.Conn.Write(p)
}

func (w *wire) Read(p []byte) (int, error) {
	if w.asked {
		n := copy(p, w.hello)
		if w.hello = w.hello[n:]; len(w.hello) == 0 {
			w.hello, w.asked = nil, false
		}
		return n, nil
	}
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.front.hears()
	}
	return n, err
}

// isHello reports whether p is the command HELLO and nothing else.
func isHello(p []byte) bool {
	head, rest, ok := bytes.Cut(p, []byte("\r\n"))
	if !ok || len(head) < 2 || head[0] != '*' {
		return false
	}
	n, err := strconv.Atoi(string(head[1:]))
	return err == nil && bytes.HasPrefix(bytes.ToLower(rest), []byte("$5\r\nhello\r\n")) && bytes.Count(rest, []byte("\r\n")) == 2*n
}
