package rawredis

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// New speaks over a connection that the caller made: for TLS, and for servers that want a login first.
func New(c net.Conn) *Conn { return &Conn{c: c, r: bufio.NewReaderSize(c, readBuffer)} }

// NewClient shares the work of a batch among conns, which it owns from now on.
func NewClient(conns ...*Conn) *Client { return &Client{conns: conns} }

// Do sends one command and returns its reply, which must be a string, a status or a number. It allocates: it is for what surrounds a
// measurement, such as AUTH and INFO.
func (c *Conn) Do(args ...string) (string, error) {
	c.out = append(strconv.AppendInt(append(c.out[:0], '*'), int64(len(args)), 10), "\r\n"...)
	for _, a := range args {
		c.out = bulk(c.out, a)
	}
	if _, err := c.c.Write(c.out); err != nil {
		return "", fmt.Errorf("rawredis: %w", err)
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("rawredis: %w", err)
	}
	if len(line) < 3 {
		return "", fmt.Errorf("rawredis: reply %q", line)
	}
	text := line[1 : len(line)-2]
	switch line[0] {
	case '+', ':':
		return text, nil
	case '-':
		return "", errors.New(text)
	case '$':
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > 1<<20 {
			return "", fmt.Errorf("rawredis: reply of %s bytes", text)
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return "", fmt.Errorf("rawredis: %w", err)
		}
		return string(b[:n]), nil
	}
	return "", fmt.Errorf("rawredis: reply of unknown kind %q", line[0])
}

// Put is Set with a TTL, so that what a measurement that was cut short leaves behind goes away.
func (c *Conn) Put(keys []string, values [][]byte, ttl time.Duration, inFlight int) error {
	done := 0
	await := func(upTo int) error {
		for ; done < upTo; done++ {
			if _, err := c.reply('+'); err != nil {
				return fmt.Errorf("rawredis: set %q: %w", keys[done], err)
			}
		}
		return nil
	}
	for i, k := range keys {
		c.out = append(c.out[:0], "*5\r\n"...)
		c.out = bulk(bulk(c.out, "SET"), k)
		c.out = append(strconv.AppendInt(append(c.out, '$'), int64(len(values[i])), 10), "\r\n"...)
		head := len(c.out)
		c.out = append(c.out, "\r\n$2\r\nPX\r\n"...)
		c.num = strconv.AppendInt(c.num[:0], ttl.Milliseconds(), 10)
		c.out = append(strconv.AppendInt(append(c.out, '$'), int64(len(c.num)), 10), "\r\n"...)
		c.out = append(append(c.out, c.num...), "\r\n"...)
		c.arr = [3][]byte{c.out[:head], values[i], c.out[head:]}
		c.vec = c.arr[:]
		if _, err := c.vec.WriteTo(c.c); err != nil {
			return fmt.Errorf("rawredis: set %q: %w", k, err)
		}
		if err := await(i - max(1, inFlight) + 2); err != nil {
			return err
		}
	}
	return await(len(keys))
}

// Put is Conn.Put, spread over the connections, each with its own share of inFlight.
func (cl *Client) Put(keys []string, values [][]byte, ttl time.Duration, inFlight int) error {
	return cl.spread(keys, values, func(_ int, c *Conn, k []string, b [][]byte) error {
		return c.Put(k, b, ttl, inFlight/len(cl.conns))
	})
}
