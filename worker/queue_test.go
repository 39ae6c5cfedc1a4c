package worker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// run is a request that holds its place for a while.
func run(t *testing.T, q *queue, p Priority, bytes int64, d time.Duration) error {
	t.Helper()
	ticket, err := q.enter(t.Context(), p, 1, bytes)
	if err != nil {
		return err
	}
	time.Sleep(d)
	ticket.leave()
	return nil
}

func TestAFullQueueSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{places: 2, backgroundPlaces: 1, length: 3}
		if err := run(t, q, Serving, 0, 8*time.Second); err != nil { // the pace
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := run(t, q, Serving, 0, 8*time.Second); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		_, err := q.enter(t.Context(), Serving, 1, 0)
		busy, ok := errors.AsType[*BusyError](err)
		if !ok || !errors.Is(err, ErrBusy) || busy.Waiting != 3 {
			t.Fatalf("%v, want ErrBusy with 3 waiting", err)
		}
		// Four times eight seconds on two places, and one for the rest of a second.
		if busy.RetryAfter != 17*time.Second {
			t.Errorf("try again in %v, want 17s", busy.RetryAfter)
		}
		time.Sleep(busy.RetryAfter)
		if err := run(t, q, Serving, 0, 0); err != nil {
			t.Errorf("came back as told: %v", err)
		}
		all.Wait()
		if s := q.stats(); s != (queueStats{}) {
			t.Errorf("left over: %+v", s)
		}
	})
}

func TestMemoryIsBoundedAndLargeRequestsAreNotOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{places: 8, backgroundPlaces: 4, length: 8, bytes: 100}
		if _, err := q.enter(t.Context(), Serving, 1, 101); !errors.Is(err, ErrRequest) {
			t.Errorf("more than there is: %v, want ErrRequest", err)
		}
		var all sync.WaitGroup
		for _, bytes := range []int64{60, 80, 10, 10} { // the third would fit beside the first, but the second is before it
			all.Go(func() {
				if err := run(t, q, Serving, bytes, time.Second); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if s := q.stats(); s.bytes != 60 || s.running[Serving] != 1 || s.waiting[Serving] != 3 {
			t.Errorf("%+v, want the first alone", s)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s := q.stats(); s.bytes != 100 || s.running[Serving] != 3 {
			t.Errorf("%+v, want the others together", s)
		}
		all.Wait()
	})
}

func TestServingComesBeforeBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{places: 1, backgroundPlaces: 1, length: 8}
		background, err := q.enter(t.Context(), Background, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		if q.quiet() != nil {
			t.Error("background work does not go on although nothing else runs")
		}
		serving, err := q.enter(t.Context(), Serving, 1, 0)
		if err != nil {
			t.Fatal("background work is in the way")
		}
		serving.begin()
		quiet := q.quiet()
		if quiet == nil {
			t.Fatal("background work goes on beside a request")
		}
		background.leave()
		late := make(chan struct{})
		go func() { // waits for the place of background work, behind a request that waits
			defer close(late)
			if err := run(t, q, Background, 0, 0); err != nil {
				t.Error(err)
			}
		}()
		second := make(chan *ticket)
		go func() {
			ticket, err := q.enter(t.Context(), Serving, 1, 0)
			if err != nil {
				t.Error(err)
			}
			second <- ticket
		}()
		synctest.Wait()
		select {
		case <-quiet:
			t.Fatal("quiet while a request runs")
		default:
		}
		serving.leave()
		(<-second).leave()
		<-late
		<-quiet
	})
}

func TestWhoWaitsCanLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{places: 1, backgroundPlaces: 1, length: 8, bytes: 10}
		first, err := q.enter(t.Context(), Serving, 1, 5)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := q.enter(ctx, Serving, 1, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		cancel()
		if _, err := q.enter(ctx, Serving, 1, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled before: %v", err)
		}
		refused := make(chan error)
		go func() {
			_, err := q.enter(t.Context(), Serving, 1, 1)
			refused <- err
		}()
		synctest.Wait()
		q.close()
		if err := <-refused; !errors.Is(err, ErrClosed) {
			t.Errorf("waited while it closed: %v", err)
		}
		if _, err := q.enter(t.Context(), Serving, 1, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("came after it closed: %v", err)
		}
		first.leave()
		if s := q.stats(); s != (queueStats{}) {
			t.Errorf("left over: %+v", s)
		}
	})
}

// Whatever comes and goes in which order, bounds hold and everybody is answered.
func TestQueueBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		requests := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) [5]int {
			return [5]int{
				rapid.IntRange(0, 1).Draw(rt, "priority"), rapid.IntRange(1, 3).Draw(rt, "places"), rapid.IntRange(0, 50).Draw(rt, "bytes"),
				rapid.IntRange(0, 20).Draw(rt, "begin"), rapid.IntRange(1, 20).Draw(rt, "patience"),
			}
		}), 1, 25).Draw(rt, "requests")
		synctest.Test(t, func(t *testing.T) {
			q := &queue{places: 3, backgroundPlaces: 3, length: 4, bytes: 60}
			var all sync.WaitGroup
			for _, r := range requests {
				all.Go(func() {
					time.Sleep(time.Duration(r[3]) * time.Second)
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r[4])*time.Second)
					defer cancel()
					ticket, err := q.enter(ctx, Priority(r[0]), r[1], int64(r[2]))
					if s := q.stats(); s.running[0] > 3 || s.running[1] > 3 || s.bytes > 60 || s.waiting[0] > 4 || s.waiting[1] > 4 {
						t.Errorf("out of bounds: %+v", s)
					}
					if err == nil {
						time.Sleep(3 * time.Second)
						ticket.leave()
					} else if !errors.Is(err, ErrBusy) && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if s := q.stats(); s != (queueStats{}) {
				t.Errorf("left over: %+v", s)
			}
		})
	})
}
