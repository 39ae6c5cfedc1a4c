package redisstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/store/storetest"
)

// patient is longer than any of these tests takes on a busy machine.
const patient = time.Minute

// pair is a primary behind a bad network, and its replica. What is replicated is up to the test.
type pair struct {
	primary, replica *miniredis.Miniredis
	proxy            *faultproxy.Proxy
}

func newPair(t *testing.T) pair {
	t.Helper()
	p := pair{primary: miniredis.RunT(t), replica: miniredis.RunT(t)}
	var err error
	if p.proxy, err = faultproxy.Open(faultproxy.Options{Listen: "127.0.0.1:0", Upstream: p.primary.Addr(), Seed: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.proxy.Close() })
	return p
}

func (p pair) open(t *testing.T, change func(*redisstore.Options)) *redisstore.Store {
	o := redisstore.Options{
		URL: "redis://" + p.proxy.Addr(), Hedge: time.Millisecond, Replicas: []string{p.replica.Addr()},
		Timeout: patient, DialTimeout: patient, PoolTimeout: patient,
	}
	if change != nil {
		change(&o)
	}
	return open(t, o)
}

// set stores a value on the primary, and on the replica if it has it already.
func (p pair) set(t *testing.T, key string, value []byte, replicated bool) {
	t.Helper()
	if err := p.primary.Set(key, string(value)); err != nil {
		t.Fatal(err)
	}
	if replicated {
		if err := p.replica.Set(key, string(value)); err != nil {
			t.Fatal(err)
		}
	}
}

func (p pair) fault(t *testing.T, f faultproxy.Faults) {
	t.Helper()
	if err := p.proxy.Set(f); err != nil {
		t.Fatal(err)
	}
}

// read gets keys, with room for so many bytes each, and returns what was yielded. Room for 1 MiB and more makes each a round trip.
func read(ctx context.Context, s store.Store, room int, keys ...string) (values [][]byte, errs []error) {
	bufs := make([][]byte, len(keys))
	for i := range bufs {
		bufs[i] = make([]byte, room+store.Spare)
	}
	i := 0
	for n, err := range s.Get(ctx, keys, bufs) {
		values, errs = append(values, bufs[i][:n]), append(errs, err)
		i++
	}
	return values, errs
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begun := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > patient {
			t.Fatal("never: " + what)
		}
	}
}

func TestAReplicaAnswersForASlowPrimary(t *testing.T) {
	p := newPair(t)
	s := p.open(t, nil)
	var keys []string
	var values [][]byte
	for i, size := range []int{0, 1, 700, 700, 100 << 10, 200 << 10, 200 << 10} {
		keys, values = append(keys, fmt.Sprintf("k%d", i)), append(values, bytes.Repeat([]byte{byte(i + 1)}, size))
		p.set(t, keys[i], values[i], true)
	}
	p.fault(t, faultproxy.Faults{Blackhole: true})
	for _, room := range []int{200 << 10, 1 << 20} { // five keys, and one, in a round trip
		got, errs := read(t.Context(), s, room, keys...)
		for i := range keys {
			if errs[i] != nil || !bytes.Equal(got[i], values[i]) {
				t.Errorf("%s: %d bytes, %v, want %d bytes", keys[i], len(got[i]), errs[i], len(values[i]))
			}
		}
	}
	if n, err := s.Lead(t.Context(), keys); n != len(keys) || err != nil {
		t.Errorf("Lead = %d, %v", n, err)
	}
	if h := s.Hedges(); h.Won < 10 || h.Sent < h.Won {
		t.Errorf("Hedges = %+v", h)
	}
}

// What a replica does not have, it may only not have yet.
func TestAReplicasMissWaitsForThePrimary(t *testing.T) {
	p := newPair(t)
	s := p.open(t, nil)
	p.set(t, "both", []byte("1"), true)
	p.set(t, "late", []byte("2"), false)
	p.fault(t, faultproxy.Faults{Blackhole: true})
	var wg sync.WaitGroup
	wg.Go(func() {
		got, errs := read(t.Context(), s, 100, "both", "late", "none")
		if string(got[0]) != "1" || string(got[1]) != "2" || errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], store.ErrNotFound) {
			t.Errorf("Get: %q, %v", got, errs)
		}
	})
	wg.Go(func() {
		if n, err := s.Lead(t.Context(), []string{"both", "late", "none"}); n != 2 || err != nil {
			t.Errorf("Lead = %d, %v, want the primary's 2", n, err)
		}
	})
	waitFor(t, "the replica has answered both", func() bool { return s.Hedges().Sent == 2 })
	p.fault(t, faultproxy.Faults{})
	wg.Wait()
	if h := s.Hedges(); h.Won != 0 {
		t.Errorf("Hedges = %+v, but all came from the primary", h)
	}
}

// When the primary fails, what the replica had counts, and what it had not is a fault, not a miss.
func TestAReplicaHasHalfOfWhatAFailedPrimaryHad(t *testing.T) {
	for name, fail := range map[string]func(t *testing.T, p pair, cancel context.CancelFunc){
		"connection lost": func(t *testing.T, p pair, _ context.CancelFunc) { p.fault(t, faultproxy.Faults{Refuse: true}) },
		"caller left":     func(_ *testing.T, _ pair, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			s := p.open(t, nil)
			p.set(t, "both", []byte("1"), true)
			p.set(t, "late", []byte("2"), false)
			p.fault(t, faultproxy.Faults{Blackhole: true})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				got, errs := read(ctx, s, 100, "both", "late")
				if known := string(got[0]) == "1" && errs[0] == nil; !known && ctx.Err() == nil {
					t.Errorf("Get: %q, %v", got[0], errs[0])
				}
				if errs[1] == nil || errors.Is(errs[1], store.ErrNotFound) {
					t.Errorf("Get of what only the primary has: %q, %v", got[1], errs[1])
				}
			})
			wg.Go(func() {
				if n, err := s.Lead(ctx, []string{"both", "late"}); err == nil || n != 1 && ctx.Err() == nil {
					t.Errorf("Lead = %d, %v, want what is known and an error", n, err)
				}
			})
			waitFor(t, "the replica has answered both", func() bool { return s.Hedges().Sent == 2 })
			fail(t, p, cancel) // a caller who leaves may be quicker than an answer on its way to the reader
			wg.Wait()
		})
	}
}

// However many reads are slow, one in twenty is hedged, after those that were saved up.
func TestHedgesAreFew(t *testing.T) {
	p := newPair(t)
	s := p.open(t, func(o *redisstore.Options) { o.Hedge = 1 }) // no primary is as quick
	p.set(t, "k", []byte("v"), true)
	const reads = 400
	for range reads {
		if got, errs := read(t.Context(), s, 100, "k"); errs[0] != nil || string(got[0]) != "v" {
			t.Fatalf("%q, %v", got[0], errs[0])
		}
	}
	if h := s.Hedges(); h.Sent == 0 || h.Sent > reads/20+32 {
		t.Errorf("%d of %d reads were hedged, want some, and at most one in 20 and 32 more", h.Sent, reads)
	}
}

func TestAQuickPrimaryIsNotHedged(t *testing.T) {
	p := newPair(t)
	s := p.open(t, func(o *redisstore.Options) { o.Hedge = time.Hour })
	p.set(t, "k", []byte("v"), true)
	if got, errs := read(t.Context(), s, 100, "k"); errs[0] != nil || string(got[0]) != "v" {
		t.Errorf("%q, %v", got[0], errs[0])
	}
	if _, err := s.Lead(t.Context(), []string{"k"}); err != nil {
		t.Error(err)
	}
	if n := p.replica.TotalConnectionCount(); n != 0 || s.Hedges() != (redisstore.Hedges{}) {
		t.Errorf("%d connections to the replica, %+v", n, s.Hedges())
	}
}

// Nothing but reads of values goes to a replica.
func TestOnlyReadsAreHedged(t *testing.T) {
	p := newPair(t)
	s := p.open(t, func(o *redisstore.Options) { o.Hedge = 1 })
	p.fault(t, faultproxy.Faults{LatencyMS: 5})
	if err := put(t, s, "k", []byte("v")); err != nil {
		t.Error(err)
	}
	if _, err := s.Lease(t.Context(), "l", "mine", 10*time.Second); err != nil {
		t.Error(err)
	}
	if _, err := s.CountPrefix(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if _, err := s.Delete(t.Context(), []string{"k"}); err != nil {
		t.Error(err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if n := p.replica.TotalConnectionCount(); n != 0 {
		t.Errorf("%d connections to the replica", n)
	}
}

// A breaker that is open, the replica's or the primary's, ends hedging: the one of the primary opens although replicas answered for it.
func TestBreakersEndHedging(t *testing.T) {
	once := store.BreakerOptions{Faults: 1, MinDelay: time.Hour, MaxDelay: time.Hour}
	state := func(s *redisstore.Store, addr string) store.BreakerState {
		for _, n := range s.NodeStates() {
			if n.Node == addr {
				return n.State
			}
		}
		return store.BreakerClosed
	}
	t.Run("replica", func(t *testing.T) {
		p := newPair(t)
		s := p.open(t, func(o *redisstore.Options) { o.NodeBreaker = once })
		p.set(t, "k", []byte("v"), false)
		gone := p.replica.Addr()
		p.replica.Close()
		p.fault(t, faultproxy.Faults{LatencyMS: 20})
		for range 10 {
			if got, errs := read(t.Context(), s, 100, "k"); errs[0] != nil || string(got[0]) != "v" {
				t.Errorf("%q, %v", got[0], errs[0])
			}
			waitFor(t, "the breaker opens", func() bool { return state(s, gone) == store.BreakerOpen })
		}
		if h := s.Hedges(); h.Sent != 1 || h.Won != 0 {
			t.Errorf("Hedges = %+v, want the one that opened the breaker", h)
		}
	})
	t.Run("primary", func(t *testing.T) {
		p := newPair(t)
		s := p.open(t, func(o *redisstore.Options) { o.NodeBreaker = once })
		p.set(t, "k", []byte("v"), true)
		if _, errs := read(t.Context(), s, 100, "k"); errs[0] != nil { // connected: attempts to connect have longer than this
			t.Fatal(errs[0])
		}
		p.fault(t, faultproxy.Faults{Blackhole: true})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // the primary fails then, unseen by the caller
		defer cancel()
		if got, errs := read(ctx, s, 100, "k"); errs[0] != nil || string(got[0]) != "v" {
			t.Errorf("%q, %v", got[0], errs[0])
		}
		// A read that found no connection ready says nothing against the server: then it is the next one's that fails.
		waitFor(t, "the breaker opens", func() bool {
			again, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, _ = read(again, s, 100, "k")
			return state(s, p.proxy.Addr()) == store.BreakerOpen
		})
		before := s.Hedges()
		if _, errs := read(t.Context(), s, 100, "k"); !errors.Is(errs[0], store.ErrUnavailable) {
			t.Errorf("behind the open breaker: %v", errs[0])
		}
		if _, err := s.Lead(t.Context(), []string{"k"}); !errors.Is(err, store.ErrUnavailable) || s.Hedges() != before {
			t.Errorf("Lead behind the open breaker: %v, %+v", err, s.Hedges())
		}
	})
}

// With several replicas one that is gone does not stand in the way of the others.
func TestHedgesGoToAReplicaThatIsThere(t *testing.T) {
	p := newPair(t)
	gone := miniredis.RunT(t)
	s := p.open(t, func(o *redisstore.Options) {
		o.Replicas = append(o.Replicas, gone.Addr())
		o.NodeBreaker = store.BreakerOptions{Faults: 1, MinDelay: time.Hour, MaxDelay: time.Hour}
	})
	gone.Close()
	p.set(t, "k", []byte("v"), true)
	p.fault(t, faultproxy.Faults{LatencyMS: 100})
	for range 6 { // of which one at most is lost to the replica that is gone
		if _, errs := read(t.Context(), s, 100, "k"); errs[0] != nil {
			t.Error(errs[0])
		}
	}
	if h := s.Hedges(); h.Won == 0 {
		t.Errorf("Hedges = %+v", h)
	}
}

// An attempt that lost goes on reading, into buffers that are nobody else's: not the caller's, and not those of a later attempt.
func TestBuffersOfHedgedReadsAreApart(t *testing.T) {
	p := newPair(t)
	s := p.open(t, nil)
	const size = 40 << 10
	keys := make([]string, 32)
	value := func(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%07d ", i), size/8) }
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
		p.set(t, keys[i], value(i), true)
	}
	p.fault(t, faultproxy.Faults{LatencyMS: 2})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(g)))
			bufs := make([][]byte, 3)
			for i := range bufs {
				bufs[i] = make([]byte, size+store.Spare)
			}
			mine := bytes.Repeat([]byte{'x'}, size+store.Spare)
			for range 40 {
				which := random.Perm(len(keys))[:len(bufs)]
				asked := []string{keys[which[0]], keys[which[1]], keys[which[2]]}
				i := 0
				for n, err := range s.Get(t.Context(), asked, bufs) {
					if err != nil || !bytes.Equal(bufs[i][:n], value(which[i])) {
						t.Errorf("%s: %d bytes, %v", asked[i], n, err)
					}
					i++
				}
				for i := range bufs { // they are the caller's again, and so are the keys
					copy(bufs[i], mine)
					asked[i] = "elsewhere"
				}
				time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
				if slices.ContainsFunc(bufs, func(b []byte) bool { return !bytes.Equal(b, mine) }) {
					t.Error("somebody wrote into the caller's buffer")
				}
			}
		})
	}
	wg.Wait()
	if h := s.Hedges(); h.Sent == 0 {
		t.Error("nothing was hedged")
	}
}

func TestConformanceHedged(t *testing.T) {
	m := miniredis.RunT(t)
	storetest.Run(t, storetest.Harness{
		Open: func(tb testing.TB) store.Store {
			m.FlushAll()
			return open(tb, redisstore.Options{URL: "redis://" + m.Addr(), Hedge: 1, Replicas: []string{m.Addr()}}) // a replica that is never late
		},
		Advance:      m.FastForward,
		MaxTTLJitter: 0.1,
	})
}

func TestHedgeOptions(t *testing.T) {
	for want, o := range map[string]redisstore.Options{
		"Hedge -1ns is negative":                                 {URL: "redis://h", Hedge: -1},
		"Hedge is set without Replicas, which Mode Single needs": {URL: "redis://h", Hedge: 1},
		"Replicas is set without Hedge":                          {URL: "redis://h", Replicas: []string{"r"}},
		"Replicas is set, which Mode cluster does not take":      {URL: "redis+cluster://h", Hedge: 1, Replicas: []string{"r"}},
		"Replicas is set, which Mode sentinel does not take":     {URL: "redis+sentinel://h/m", Hedge: 1, Replicas: []string{"r"}},
		"Replicas[0] is not host or host:port":                   {URL: "redis://h", Hedge: 1, Replicas: []string{"redis://u:secret@r"}},
	} {
		if _, err := redisstore.Open(o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
	if _, err := redisstore.Connect(redisstore.Options{URL: "redis+cluster://h", Hedge: 1}); err == nil || !strings.Contains(err.Error(), "Hedge") {
		t.Errorf("Connect: %v", err)
	}
}

// TestHedgedReadsOfRealReplicas stops primaries for a while, in every mode: the values come from the replicas, and are the same.
func TestHedgedReadsOfRealReplicas(t *testing.T) {
	sentinels, primary, replica := testredis.StartFailover(t)
	cluster, nodes := testredis.StartReplicatedCluster(t, 3)
	command := func(t *testing.T, addr string, args ...any) {
		t.Helper()
		c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
		defer c.Close()
		if err := c.Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%s: %v: %v", addr, args, err)
		}
	}
	const pause = 6 * time.Second
	// Nobody is to take over while primaries are stopped.
	sentinel, _, _ := strings.Cut(strings.TrimPrefix(sentinels, "redis+sentinel://"), "/")
	command(t, sentinel, "sentinel", "set", "master", "down-after-milliseconds", "3600000")
	for _, n := range nodes[3:] {
		command(t, n, "config", "set", "cluster-replica-no-failover", "yes")
	}
	for name, x := range map[string]struct {
		options   redisstore.Options
		primaries []string
	}{
		"single":   {redisstore.Options{URL: "redis://" + primary, Replicas: []string{replica}}, []string{primary}},
		"sentinel": {redisstore.Options{URL: sentinels}, []string{primary}},
		"cluster":  {redisstore.Options{URL: cluster}, nodes[:3]},
	} {
		t.Run(name, func(t *testing.T) {
			x.options.Hedge, x.options.Timeout, x.options.DialTimeout, x.options.PoolTimeout = 5*time.Millisecond, patient, patient, patient
			s := open(t, x.options)
			var items []store.Item
			var keys []string
			for i := range 12 {
				k := fmt.Sprintf("kvt1:d:%s:%d", name, i)
				keys, items = append(keys, k), append(items, store.Item{Key: k, Value: bytes.Repeat([]byte{byte(i + 1)}, 100<<10)})
			}
			if err := s.Put(t.Context(), items, time.Hour); err != nil {
				t.Fatal(err)
			}
			check := func(when string) {
				t.Helper()
				got, errs := read(t.Context(), s, 100<<10, keys...)
				for i := range keys {
					if errs[i] != nil || !bytes.Equal(got[i], items[i].Value) {
						t.Errorf("%s: %s: %d bytes, %v", when, keys[i], len(got[i]), errs[i])
					}
				}
			}
			check("before")
			for i, addr := range x.primaries {
				replicated(t, addr, fmt.Sprintf("mark:%d", i), name == "cluster")
			}
			for _, addr := range x.primaries {
				command(t, addr, "client", "pause", pause.Milliseconds(), "all") // which nothing ends early: it stops CLIENT UNPAUSE too
			}
			before := s.Hedges().Won
			check("primaries stopped")
			if h := s.Hedges(); h.Won == before {
				t.Errorf("Hedges = %+v, %d won before", h, before)
			}
			check("primaries stopped or not any more")
			t.Logf("%+v", s.Hedges())
		})
	}
}

// replicated waits until a replica of the server at addr has everything that was written so far.
func replicated(t *testing.T, addr, mark string, slotted bool) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ReadTimeout: patient})
	defer c.Close()
	conn := c.Conn() // WAIT is about what its own connection wrote
	defer conn.Close()
	for i := range 1000 { // in a cluster, until the key is one of the server's own
		err := conn.Set(t.Context(), fmt.Sprint(mark, i), "", time.Hour).Err()
		if err == nil {
			break
		}
		if !slotted || !strings.HasPrefix(err.Error(), "MOVED") {
			t.Fatal(err)
		}
	}
	if n, err := conn.Wait(t.Context(), 1, patient/2).Result(); n < 1 || err != nil {
		t.Fatalf("WAIT: %d, %v", n, err)
	}
}

// BenchmarkHedged is BenchmarkRedis with reads that might be hedged, and never are: what the buffers of their own cost.
func BenchmarkHedged(b *testing.B) {
	url := os.Getenv("KVTIER_BENCH_REDIS")
	if url == "" {
		b.Skip("KVTIER_BENCH_REDIS names no server")
	}
	storetest.RunBenchmarks(b, storetest.Harness{
		Open: func(tb testing.TB) store.Store {
			return open(tb, redisstore.Options{URL: url, Hedge: time.Hour, Replicas: []string{strings.TrimPrefix(url, "redis://")}})
		},
	})
}
