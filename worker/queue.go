package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// ErrBusy means that too many requests wait already. Such an error is a *BusyError.
var ErrBusy = errors.New("worker: too many requests")

// BusyError says when to try again.
type BusyError struct {
	Waiting    int
	RetryAfter time.Duration // when, at the present pace, as many as wait now will have been admitted
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%v: %d wait already, try again in %v", ErrBusy, e.Waiting, e.RetryAfter)
}

// Is makes every BusyError an ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// queue admits requests, in order, while there are places and memory for them. It is bounded: who would make it longer is refused. Serving
// requests come before Background ones, which have places of their own, so that they can be set aside without being in the way, and a
// turn only when no Serving request has one.
type queue struct {
	places, backgroundPlaces, length int
	bytes                            int64 // bound of what is admitted; 0 for none

	mu struct {
		sync.Mutex
		used    [2]int // places, by priority
		bytes   int64
		waiting [2][]*ticket
		serving int           // Serving requests under way: see ticket.begin
		quiet   chan struct{} // closed when none is; nil while nobody waits for that
		calm    context.Context
		disturb context.CancelCauseFunc // ends calm when one is; nil while nobody needs it
		closed  bool
		pace    time.Duration // moving average of how long a place is held
	}
}

// ticket is a place in the queue, and from its turn on a place among those who run.
type ticket struct {
	queue    *queue
	priority Priority
	places   int
	bytes    int64
	turn     chan struct{} // closed when admitted or refused
	err      error         // set before turn is closed
	since    time.Time     // of admission
	begun    bool
}

// errDisturbed ends what may be computed only while no Serving request is under way.
var errDisturbed = errors.New("worker: a request came")

// enter waits for a turn. It fails with a *BusyError at once, with ErrClosed, with a *RequestError for what will never fit, or with ctx's error.
func (q *queue) enter(ctx context.Context, p Priority, places int, bytes int64) (*ticket, error) {
	return q.wait(ctx, q.ticket(p, places, bytes), q.refuseLocked)
}

// follow is enter for a part of a request of which room has said that it may enter: it waits, however many do.
func (q *queue) follow(ctx context.Context, p Priority, places int, bytes int64) (*ticket, error) {
	return q.wait(ctx, q.ticket(p, places, bytes), func(*ticket) error {
		if q.mu.closed {
			return ErrClosed
		}
		return nil
	})
}

// room fails as enter would at once.
func (q *queue) room(p Priority, places int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refuseLocked(q.ticket(p, places, 0))
}

func (q *queue) ticket(p Priority, places int, bytes int64) *ticket {
	return &ticket{queue: q, priority: p, places: places, bytes: bytes, turn: make(chan struct{})}
}

// refuseLocked says why t may not even wait.
func (q *queue) refuseLocked(t *ticket) error {
	switch waiting := len(q.mu.waiting[t.priority]); {
	case q.mu.closed:
		return ErrClosed
	case !q.firstLocked(t) && waiting >= q.length:
		return &BusyError{Waiting: waiting, RetryAfter: q.waitLocked(waiting)}
	}
	return nil
}

// wait waits for t's turn, unless refuse has a reason against it.
func (q *queue) wait(ctx context.Context, t *ticket, refuse func(*ticket) error) (*ticket, error) {
	p, bytes := t.priority, t.bytes
	if q.bytes > 0 && bytes > q.bytes {
		return nil, badRequest("too_large", "", "the request needs %d bytes for K and V of prompt and answer, this worker has %d for all requests: shorten the prompt, max_tokens or n", bytes, q.bytes)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	if err := refuse(t); err != nil {
		q.mu.Unlock()
		return nil, err
	}
	q.mu.waiting[p] = append(q.mu.waiting[p], t)
	q.admitLocked()
	q.mu.Unlock()
	select {
	case <-t.turn:
		return t, t.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.mu.waiting[p], t); i >= 0 {
		q.mu.waiting[p] = slices.Delete(q.mu.waiting[p], i, i+1)
		q.admitLocked() // it may have been in the way of smaller ones
	} else if t.err == nil { // its turn came at the same time
		q.giveLocked(t)
	}
	return nil, ctx.Err()
}

// firstLocked reports whether t would be admitted at once.
func (q *queue) firstLocked(t *ticket) bool {
	return len(q.mu.waiting[Serving]) == 0 && (t.priority == Serving || len(q.mu.waiting[Background]) == 0) && q.fitsLocked(t)
}

func (q *queue) fitsLocked(t *ticket) bool {
	limit := q.places
	if t.priority == Background {
		limit = q.backgroundPlaces
	}
	return q.mu.used[t.priority]+t.places <= limit && (q.bytes == 0 || q.mu.bytes+t.bytes <= q.bytes)
}

// admitLocked gives turns to those at the front of the queue. One that does not fit holds up those behind it: large requests starve otherwise.
func (q *queue) admitLocked() {
	for _, p := range []Priority{Serving, Background} {
		for len(q.mu.waiting[p]) > 0 {
			t := q.mu.waiting[p][0]
			if !q.fitsLocked(t) {
				return
			}
			q.mu.waiting[p] = slices.Delete(q.mu.waiting[p], 0, 1)
			q.mu.used[p] += t.places
			q.mu.bytes += t.bytes
			t.since = time.Now()
			close(t.turn)
		}
	}
}

// begin tells that nothing keeps the request from computing any more. Background work makes way from now on, at once, and not from when the
// request got its place: it may have waited for an exchange of weights since, which waits for background work.
func (t *ticket) begin() {
	if t.priority != Serving {
		return
	}
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	t.begun = true
	q.mu.serving++
	if q.mu.disturb != nil {
		q.mu.disturb(errDisturbed)
		q.mu.calm, q.mu.disturb = nil, nil
	}
}

// leave gives the place back.
func (t *ticket) leave() {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if held := time.Since(t.since); t.priority == Serving {
		if q.mu.pace == 0 {
			q.mu.pace = held
		}
		q.mu.pace += (held - q.mu.pace) / 8
	}
	q.giveLocked(t)
}

func (q *queue) giveLocked(t *ticket) {
	q.mu.used[t.priority] -= t.places
	q.mu.bytes -= t.bytes
	if t.begun {
		q.mu.serving--
	}
	if q.mu.serving == 0 && q.mu.quiet != nil {
		close(q.mu.quiet)
		q.mu.quiet = nil
	}
	q.admitLocked()
}

// waitLocked is how long the last of n who wait has to, in whole seconds from 1 to 60.
func (q *queue) waitLocked(n int) time.Duration {
	wait := q.mu.pace * time.Duration(n+1) / time.Duration(q.places)
	return min(max(wait.Truncate(time.Second)+time.Second, time.Second), time.Minute)
}

// quiet returns a channel that is closed when no Serving request is under way, nil if none is.
func (q *queue) quiet() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.serving == 0 {
		return nil
	}
	if q.mu.quiet == nil {
		q.mu.quiet = make(chan struct{})
	}
	return q.mu.quiet
}

// whileQuiet returns a context that ends with ctx, or because of errDisturbed as soon as a Serving request is under way. end releases it.
func (q *queue) whileQuiet(ctx context.Context) (calm context.Context, end func()) {
	q.mu.Lock()
	if q.mu.calm == nil {
		q.mu.calm, q.mu.disturb = context.WithCancelCause(context.Background())
		if q.mu.serving > 0 {
			q.mu.disturb(errDisturbed)
		}
	}
	calm, stop := context.WithCancelCause(q.mu.calm)
	q.mu.Unlock()
	// This way round a request ends it in begin, on its own goroutine: the processors are busy with what has to end.
	unhook := context.AfterFunc(ctx, func() { stop(context.Cause(ctx)) })
	return calm, func() { unhook(); stop(nil) }
}

// close refuses everybody who waits and everybody who comes, with ErrClosed.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.closed = true
	for p, waiting := range q.mu.waiting {
		for _, t := range waiting {
			t.err = ErrClosed
			close(t.turn)
		}
		q.mu.waiting[p] = nil
	}
}

// queueStats is a snapshot of a queue, by priority.
type queueStats struct {
	waiting, running [2]int
	bytes            int64
}

func (q *queue) stats() (s queueStats) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for p := range s.waiting {
		s.waiting[p], s.running[p] = len(q.mu.waiting[p]), q.mu.used[p]
	}
	s.bytes = q.mu.bytes
	return s
}
