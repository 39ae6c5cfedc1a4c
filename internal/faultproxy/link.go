package faultproxy

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is one client's connection and the one to the server that goes with it.
type link struct {
	p              *Proxy
	client, server net.Conn
	once           sync.Once
	done           chan struct{} // closed when the link is cut
}

// cut ends both connections at once.
func (l *link) cut() {
	l.once.Do(func() {
		close(l.done)
		reset(l.client)
		reset(l.server)
	})
}

const (
	chunkBytes = 16 << 10
	// windowChunks is what may be under way in one direction of a connection, 4 MiB at most: with 200 ms of latency that still is 20 MB/s.
	windowChunks = 256
)

// chunk is what one read returned.
type chunk struct {
	buf *[chunkBytes]byte
	n   int
	at  time.Time
}

var buffers = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// carry moves bytes from one connection to the other: one goroutine reads and stamps them, this one lets them go when their time has come, so that
// latency does not throttle.
func (l *link) carry(from, to net.Conn, p *pace, count *atomic.Int64, reply bool) {
	chunks := make(chan chunk, windowChunks)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(chunks)
		for {
			buf := buffers.Get().(*[chunkBytes]byte)
			n, err := from.Read(buf[:])
			if n > 0 {
				select {
				case chunks <- chunk{buf, n, time.Now()}:
				case <-l.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	s := sender{link: l, pace: p, reply: reply}
	for c := range chunks {
		data, ok := s.pass(c)
		if len(data) > 0 {
			if _, err := to.Write(data); err != nil {
				l.cut()
			}
			count.Add(int64(len(data)))
		}
		buffers.Put(c.buf)
		if !ok {
			l.p.stats.resets.Add(1)
			l.cut()
		}
	}
	reader.Wait()
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the other direction goes on until its own end
	}
}

// sender applies faults to one direction.
type sender struct {
	*link
	pace     *pace
	reply    bool
	era      uint64
	sent     int64 // in this era
	nextFlip int64 // in terms of sent
}

// pass waits until c may go, and returns what of it may; ok is false when the link has to be cut after that.
func (s *sender) pass(c chunk) (data []byte, ok bool) {
	f, alive := s.hold(c)
	if !alive {
		return nil, true
	}
	data = c.buf[:c.n]
	if !s.reply {
		return data, true
	}
	ok = true
	if f.ResetAfterBytes > 0 && s.sent+int64(len(data)) >= f.ResetAfterBytes {
		data, ok = data[:max(0, f.ResetAfterBytes-s.sent)], false
	}
	if f.FlipEveryBytes > 0 {
		s.flip(data, f.FlipEveryBytes)
	}
	s.sent += int64(len(data))
	return data, ok
}

// hold waits as long as the faults say, which may change meanwhile, and returns those in force at the end, or false when the link was cut.
func (s *sender) hold(c chunk) (f Faults, alive bool) {
	select {
	case <-s.done: // what is left of a link that was cut takes no bandwidth from others
		return f, false
	default:
	}
	var due time.Time
	for first := true; ; first = false {
		f, era, changed := s.p.now()
		if first || era != s.era {
			due = c.at
			if era != s.era {
				s.era, s.sent, s.nextFlip = era, 0, 0
			}
			if s.reply {
				due = due.Add(f.latency())
			}
			if f.BytesPerSecond > 0 {
				due = later(due, s.pace.reserve(c.n, c.at, f.BytesPerSecond))
			}
			if f.Loss > 0 {
				due = due.Add(s.lose(c.n, f.Loss))
			}
		}
		wait := time.Until(due)
		if f.Blackhole {
			wait = time.Hour
		}
		if wait <= 0 {
			select {
			case <-s.done:
				return f, false
			default:
				return f, true
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-s.done:
			timer.Stop()
			return f, false
		}
		timer.Stop()
	}
}

// lose decides how many packets of n bytes get lost, and returns how much later they arrive. Packets behind a lost one wait for it.
func (s *sender) lose(n int, part float64) (late time.Duration) {
	s.p.draw(func(r *rand.Rand) {
		for ; n > 0; n -= packetBytes {
			if r.Float64() < part {
				s.p.stats.losses.Add(1)
				late = resendDelay // those of one window are sent again together
			}
		}
	})
	return late
}

// flip inverts a bit about every so many bytes.
func (s *sender) flip(data []byte, every int64) {
	s.p.draw(func(r *rand.Rand) {
		if s.nextFlip == 0 {
			s.nextFlip = 1 + r.Int64N(2*every)
		}
		for s.nextFlip <= s.sent+int64(len(data)) {
			data[s.nextFlip-s.sent-1] ^= 1 << r.IntN(8)
			s.p.stats.flips.Add(1)
			s.nextFlip += 1 + r.Int64N(2*every)
		}
	})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
