package redisstore

import (
	"context"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/store"
)

// questionTime is how long a question may go unanswered at least, from when it is on the wire, whatever its caller's patience.
const questionTime = 500 * time.Millisecond

// detached marks the context of a question whose caller may have left.
type detached struct{}

// ask runs trip, a small question, and returns what it does. At the end of ctx the caller leaves and gets late's error: a question that has not
// been sent by then is not sent, and one that has been is waited for in the background, because a connection that is given up with an answer
// under way is lost: were it given up, then on a slow link each question would cost a connection, and the next be late because of that. trip
// must not touch what is the caller's.
func ask[T any](ctx context.Context, s *Store, key, op string, trip func(context.Context) T) (answer T, late error) {
	patience := s.opts.Timeout
	if end, ok := ctx.Deadline(); ok {
		patience = max(time.Until(end), questionTime)
	}
	lasting, leave := context.WithTimeout(context.WithValue(context.WithoutCancel(ctx), detached{}, true), patience)
	defer leave() // ends the wait for a connection, not the one for an answer
	done := make(chan T, 1)
	if !s.asked.begin(func() { done <- trip(lasting) }) {
		return answer, &opError{op, key, store.ErrClosed}
	}
	select {
	case answer = <-done:
		return answer, nil
	case <-ctx.Done():
	}
	err := ctx.Err()
	if s.front != nil {
		err = s.front.late(err, "waiting for the answer")
	} else { // the nodes' own breakers count the answer
		err = fmt.Errorf("%w: %w", store.ErrLate, err)
	}
	return answer, wrap(ctx, op, key, err)
}
