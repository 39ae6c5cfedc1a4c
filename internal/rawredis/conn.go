package rawredis

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// readBuffer is what a reply's header is read through: of each value at most this much is copied once more.
const readBuffer = 4 << 10

// Conn is one connection. It is for one goroutine.
type Conn struct {
	c   net.Conn
	r   *bufio.Reader
	out []byte
	vec net.Buffers
	arr [3][]byte
	num []byte
}

// Dial connects to a server without login: network is tcp or unix.
func Dial(network, addr string) (*Conn, error) {
	c, err := net.Dial(network, addr)
	if err != nil {
		return nil, fmt.Errorf("rawredis: %w", err)
	}
	return &Conn{c: c, r: bufio.NewReaderSize(c, readBuffer)}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Get reads keys[i] into bufs[i], inFlight requests ahead of the replies, and returns the sum of the lengths. A value that is missing or
// longer than its buffer is an error.
func (c *Conn) Get(keys []string, bufs [][]byte, inFlight int) (int, error) {
	sum, sent := 0, 0
	for i := range keys {
		for ; sent < len(keys) && sent < i+max(1, inFlight); sent++ {
			c.out = command(c.out[:0], "GET", keys[sent])
			if _, err := c.c.Write(c.out); err != nil {
				return sum, err
			}
		}
		n, err := c.reply('$')
		if err != nil {
			return sum, fmt.Errorf("rawredis: get %q: %w", keys[i], err)
		}
		if n < 0 || n > len(bufs[i]) {
			return sum, fmt.Errorf("rawredis: get %q: %d bytes for a buffer of %d", keys[i], n, len(bufs[i]))
		}
		if _, err := io.ReadFull(c.r, bufs[i][:n]); err != nil {
			return sum, err
		}
		if _, err := c.r.Discard(2); err != nil {
			return sum, err
		}
		sum += n
	}
	return sum, nil
}

// Set stores values[i] under keys[i] without a TTL, inFlight requests ahead of the replies.
func (c *Conn) Set(keys []string, values [][]byte, inFlight int) error {
	done := 0
	for i, k := range keys {
		c.out = append(c.out[:0], "*3\r\n"...)
		c.out = bulk(bulk(c.out, "SET"), k)
		c.out = append(strconv.AppendInt(append(c.out, '$'), int64(len(values[i])), 10), "\r\n"...)
		c.arr = [3][]byte{c.out, values[i], crlf[:]}
		c.vec = c.arr[:]
		if _, err := c.vec.WriteTo(c.c); err != nil {
			return err
		}
		for ; done <= i-max(1, inFlight)+1; done++ {
			if _, err := c.reply('+'); err != nil {
				return fmt.Errorf("rawredis: set %q: %w", keys[done], err)
			}
		}
	}
	for ; done < len(keys); done++ {
		if _, err := c.reply('+'); err != nil {
			return fmt.Errorf("rawredis: set %q: %w", keys[done], err)
		}
	}
	return nil
}

// Exists asks for every key in one pipeline and returns how many are there.
func (c *Conn) Exists(keys []string) (int, error) {
	c.out = c.out[:0]
	for _, k := range keys {
		c.out = command(c.out, "EXISTS", k)
	}
	if _, err := c.c.Write(c.out); err != nil {
		return 0, err
	}
	sum := 0
	for range keys {
		n, err := c.reply(':')
		if err != nil {
			return sum, err
		}
		sum += n
	}
	return sum, nil
}

var crlf = [2]byte{'\r', '\n'}

// reply reads the line that starts a reply of the given kind, and its number if it has one.
func (c *Conn) reply(kind byte) (int, error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 3 || line[0] != kind {
		return 0, errors.New(string(line))
	}
	if kind == '+' {
		return 0, nil
	}
	n, neg := 0, line[1] == '-'
	for _, d := range line[1 : len(line)-2] {
		if d != '-' {
			n = 10*n + int(d-'0')
		}
	}
	if neg {
		n = -n
	}
	return n, nil
}

func command(b []byte, name, key string) []byte {
	return bulk(bulk(append(b, "*2\r\n"...), name), key)
}

func bulk(b []byte, s string) []byte {
	b = strconv.AppendInt(append(b, '$'), int64(len(s)), 10)
	return append(append(append(b, "\r\n"...), s...), "\r\n"...)
}

// Client is some connections that share the work of a batch, key by key in turn.
type Client struct {
	conns []*Conn
}

// Open dials conns connections.
func Open(network, addr string, conns int) (*Client, error) {
	cl := &Client{}
	for range conns {
		c, err := Dial(network, addr)
		if err != nil {
			cl.Close()
			return nil, err
		}
		cl.conns = append(cl.conns, c)
	}
	return cl, nil
}

// Get is Conn.Get, spread over the connections, each with its own share of inFlight.
func (cl *Client) Get(keys []string, bufs [][]byte, inFlight int) (int, error) {
	sums := make([]int, len(cl.conns))
	err := cl.spread(keys, bufs, func(i int, c *Conn, k []string, b [][]byte) (err error) {
		sums[i], err = c.Get(k, b, inFlight/len(cl.conns))
		return err
	})
	sum := 0
	for _, n := range sums {
		sum += n
	}
	return sum, err
}

// Set is Conn.Set, spread over the connections.
func (cl *Client) Set(keys []string, values [][]byte, inFlight int) error {
	return cl.spread(keys, values, func(_ int, c *Conn, k []string, b [][]byte) error { return c.Set(k, b, inFlight/len(cl.conns)) })
}

func (cl *Client) spread(keys []string, bufs [][]byte, do func(int, *Conn, []string, [][]byte) error) error {
	n := len(cl.conns)
	if n == 1 {
		return do(0, cl.conns[0], keys, bufs)
	}
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, c := range cl.conns {
		wg.Go(func() {
			var k []string
			var b [][]byte
			for j := i; j < len(keys); j += n {
				k, b = append(k, keys[j]), append(b, bufs[j])
			}
			errs[i] = do(i, c, k, b)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close closes the connections.
func (cl *Client) Close() {
	for _, c := range cl.conns {
		_ = c.Close()
	}
}
