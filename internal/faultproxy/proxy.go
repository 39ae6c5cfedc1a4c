package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed means that Close was called.
var ErrClosed = errors.New("faultproxy: closed")

// Options say what a Proxy connects.
type Options struct {
	// Listen is the address for clients, such as 127.0.0.1:0; required.
	Listen string
	// Upstream is the server's host:port; required. It need not be there yet.
	Upstream string
	// Seed decides which packets get lost and which bits flip, as far as the order of packets is the same.
	Seed uint64
}

// Stats counts what a Proxy has done since it was opened.
type Stats struct {
	Connections int   `json:"connections"` // open now
	BytesUp     int64 `json:"bytes_up"`    // that clients sent and the server got
	BytesDown   int64 `json:"bytes_down"`  // that the server sent and clients got
	Resets      int64 `json:"resets"`      // connections cut off on purpose
	Flips       int64 `json:"flips"`       // bits
	Losses      int64 `json:"losses"`      // packets
}

// Proxy carries TCP connections to one server. It is safe for concurrent use.
type Proxy struct {
	opts Options
	addr string
	wg   sync.WaitGroup

	up, down pace
	stats    struct{ up, down, resets, flips, losses atomic.Int64 }

	mu struct {
		sync.Mutex
		faults   Faults
		era      uint64        // counts the calls of Set
		changed  chan struct{} // closed by the next Set
		listener net.Listener  // nil while refusing
		links    map[*link]struct{}
		random   *rand.Rand
		closed   bool
	}
}

// Open starts a proxy without faults.
func Open(o Options) (*Proxy, error) {
	if _, _, err := net.SplitHostPort(o.Upstream); err != nil {
		return nil, fmt.Errorf("faultproxy: upstream %q: want host:port, such as 127.0.0.1:6379: %w", o.Upstream, err)
	}
	p := &Proxy{opts: o}
	p.mu.changed, p.mu.links = make(chan struct{}), map[*link]struct{}{}
	p.mu.random = rand.New(rand.NewPCG(o.Seed, 1))
	p.addr = o.Listen
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.listen(); err != nil {
		return nil, err
	}
	p.addr = p.mu.listener.Addr().String() // the same port after each refusal
	return p, nil
}

// Addr is where clients connect. It stays the same.
func (p *Proxy) Addr() string { return p.addr }

// Faults returns what Set was given last.
func (p *Proxy) Faults() Faults {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.faults
}

// Set replaces the faults, for running connections too. It fails, and changes nothing, if f is invalid or if clients cannot be accepted
// again because another process has taken the port.
func (p *Proxy) Set(f Faults) error {
	if err := f.Validate(); err != nil {
		return fmt.Errorf("faultproxy: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return ErrClosed
	}
	if !f.Refuse {
		if err := p.listen(); err != nil {
			return err
		}
	}
	p.mu.faults = f
	p.mu.era++
	close(p.mu.changed)
	p.mu.changed = make(chan struct{})
	p.up.forget()
	p.down.forget()
	if f.Refuse {
		p.hangUp()
	}
	return nil
}

// Stats returns a snapshot.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{
		Connections: len(p.mu.links), BytesUp: p.stats.up.Load(), BytesDown: p.stats.down.Load(),
		Resets: p.stats.resets.Load(), Flips: p.stats.flips.Load(), Losses: p.stats.losses.Load(),
	}
}

// Close cuts all connections off and waits for everything to end.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.mu.closed = true
	p.hangUp()
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// listen accepts clients unless that is done already. mu is held.
func (p *Proxy) listen() error {
	if p.mu.listener != nil {
		return nil
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", p.addr)
	if err != nil {
		return fmt.Errorf("faultproxy: listen: %w", err)
	}
	p.mu.listener = ln
	p.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(10 * time.Millisecond) // out of file descriptors: the next try may find some
				continue
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	return nil
}

// hangUp stops accepting and cuts off what there is. mu is held.
func (p *Proxy) hangUp() {
	if p.mu.listener != nil {
		_ = p.mu.listener.Close()
		p.mu.listener = nil
	}
	for l := range p.mu.links {
		l.cut()
	}
}

// serve carries one client's connection until either side ends it.
func (p *Proxy) serve(client net.Conn) {
	server, err := (&net.Dialer{Timeout: 2 * time.Second}).Dial("tcp", p.opts.Upstream)
	if err != nil {
		reset(client)
		return
	}
	l := &link{p: p, client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	if p.mu.closed || p.mu.faults.Refuse {
		p.mu.Unlock()
		l.cut()
		return
	}
	p.mu.links[l] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.carry(client, server, &p.up, &p.stats.up, false) })
	both.Go(func() { l.carry(server, client, &p.down, &p.stats.down, true) })
	both.Wait()
	_, _ = client.Close(), server.Close()
	p.mu.Lock()
	delete(p.mu.links, l)
	p.mu.Unlock()
}

// now returns the faults in force and a channel that is closed when they change.
func (p *Proxy) now() (f Faults, era uint64, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.faults, p.mu.era, p.mu.changed
}

// draw calls f with the proxy's random numbers.
func (p *Proxy) draw(f func(*rand.Rand)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p.mu.random)
}

// reset closes c so that the peer is told at once, and loses what it has not read.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// pace is the bandwidth of one direction, shared by all connections.
type pace struct {
	mu   sync.Mutex
	free time.Time // when what was sent before is through
}

// reserve returns when n bytes have passed that came at at. It is not asked about now: this process may be late, a link is not.
func (p *pace) reserve(n int, at time.Time, perSecond int64) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = later(p.free, at)
	p.free = p.free.Add(time.Duration(float64(n) / float64(perSecond) * float64(time.Second)))
	return p.free
}

// forget drops what was reserved under an earlier limit.
func (p *pace) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = time.Time{}
}
