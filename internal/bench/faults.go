package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/faultproxy"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
)

// ErrNotEmpty means that the server holds keys: faults and warm-ups fill and flush it, and faults limit its memory.
var ErrNotEmpty = errors.New("bench: faults and warmup need an empty server of their own: it is filled and flushed, and faults limits its memory")

// FaultWorker is a worker as it is shipped, in this process.
type FaultWorker struct {
	Replica *worker.Replica
	Cache   *tiered.Cache
	// Refusing reports whether the breaker in front of Redis lets nothing through.
	Refusing func() bool
	Close    func(context.Context) error
}

func (w *FaultWorker) blockBytes() float64 {
	e, _ := w.Replica.Resident()
	return float64(e.Layout().BlockBytes())
}

// FaultNode is what a row asks of a worker.
type FaultNode struct {
	RedisURL             string
	HotBytes, SpillBytes int64
}

// FaultOptions say how to measure.
type FaultOptions struct {
	// Start starts a worker; required.
	Start func(context.Context, FaultNode) (*FaultWorker, error)
	// Server is the URL of a server that may be broken; required. Upstream is its host:port.
	Server, Upstream string
	// Fake says that the server is none: rows that need a real one are left out.
	Fake bool
	// Requests is how many requests with the cache, and as many without, a row sends. Default 40.
	Requests int
	// PrefixTokens is the length of prefixes that are reused, NewTokens that of prompts that are new. Default 1,500 and 512.
	PrefixTokens, NewTokens int
	// Only leaves out all rows but these.
	Only []string
	Seed uint64
	// Step is called after each row.
	Step func(row string)
}

func (o FaultOptions) withDefaults() FaultOptions {
	for field, value := range map[*int]int{&o.Requests: 40, &o.PrefixTokens: 1500, &o.NewTokens: 512} {
		if *field == 0 {
			*field = value
		}
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return o
}

// FaultRow is one fault and what requests made of it. JSON names are stable.
type FaultRow struct {
	Fault    string `json:"fault"`
	About    string `json:"about"`
	Requests int    `json:"requests"` // with the cache
	Failed   int    `json:"failed"`
	// Identical means that every answer is that of the same worker without any cache, token by token.
	Identical bool `json:"identical"`
	// Ratios of the time to first token to that of the same worker without any cache, in the same run.
	P50Ratio float64 `json:"ttft_p50_ratio"`
	P99Ratio float64 `json:"ttft_p99_ratio"`
	// Recovery is how long after the fault ended, in seconds, the first prompt was served from Redis again; null where nothing recovers.
	Recovery *float64 `json:"recovery_s"`

	P50Ms      float64 `json:"ttft_p50_ms"`
	PlainP50Ms float64 `json:"plain_ttft_p50_ms"`
	P99Ms      float64 `json:"ttft_p99_ms"`
	PlainP99Ms float64 `json:"plain_ttft_p99_ms"`
	// AddedP50Us is the median of what a request took longer than the same one without a cache, in µs.
	AddedP50Us float64 `json:"added_p50_us"`
	AddedMaxMs float64 `json:"added_max_ms"` // the largest of those
	Reused     float64 `json:"reused_ratio"` // part of the prompt tokens that came from a tier
	// Welch compares prompts that another tenant has with prompts that nobody has; of tenant-probe only.
	Welch  *Welch `json:"welch,omitempty"`
	Note   string `json:"note,omitempty"`
	Target string `json:"target,omitempty"`
	Met    bool   `json:"met"` // also without a target, if nothing failed and nothing was wrong
}

// faultRow is one row: how it is made, and what it should come to.
type faultRow struct {
	name, about, target string
	real                bool // needs a real server
	run                 func(context.Context, *faultBench) (FaultRow, error)
	met                 func(FaultRow) bool
}

// FaultNames are the rows that o will measure.
func (o FaultOptions) FaultNames() (names []string, err error) {
	for _, r := range faultRows {
		if (len(o.Only) == 0 || slices.Contains(o.Only, r.name)) && !(r.real && o.Fake) {
			names = append(names, r.name)
		}
	}
	for _, name := range o.Only {
		if !slices.ContainsFunc(faultRows, func(r faultRow) bool { return r.name == name }) {
			var all []string
			for _, r := range faultRows {
				all = append(all, r.name)
			}
			return nil, fmt.Errorf("unknown fault %q, want one of %s", name, strings.Join(all, ", "))
		}
	}
	return names, nil
}

// Faults measures every row, each with workers of its own behind one proxy.
func Faults(ctx context.Context, o FaultOptions) (rows []FaultRow, err error) {
	o = o.withDefaults()
	names, err := o.FaultNames()
	if err != nil {
		return nil, err
	}
	b := &faultBench{o: o, random: rand.New(rand.NewPCG(o.Seed, 7))}
	if b.admin, err = openAdmin(ctx, o.Server); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, flushAndClose(ctx, b.admin)) }()
	if !o.Fake {
		if b.config, err = b.admin.ConfigGet(ctx, "maxmemory*").Result(); err != nil {
			return nil, err
		}
	}
	if b.proxy, err = faultproxy.Open(faultproxy.Options{Listen: "127.0.0.1:0", Upstream: o.Upstream, Seed: o.Seed}); err != nil {
		return nil, err
	}
	defer b.proxy.Close()
	for _, r := range faultRows {
		if !slices.Contains(names, r.name) {
			continue
		}
		row, err := b.one(ctx, r)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", r.name, err)
		}
		rows = append(rows, row)
		o.Step(r.name)
	}
	return rows, nil
}

// one measures a row.
func (b *faultBench) one(ctx context.Context, r faultRow) (row FaultRow, err error) {
	if err := b.proxy.Set(faultproxy.Faults{}); err != nil {
		return row, err
	}
	defer func() {
		clean := context.WithoutCancel(ctx)
		err = errors.Join(err, b.proxy.Set(faultproxy.Faults{}), b.stop(clean), b.restore(clean))
	}()
	row, err = r.run(ctx, b)
	row.Fault, row.About, row.Target = r.name, r.about, r.target
	row.Met = row.Failed == 0 && row.Identical && (r.met == nil || r.met(row))
	return row, err
}

// faultBench is one run.
type faultBench struct {
	o       FaultOptions
	admin   *redis.Client
	proxy   *faultproxy.Proxy
	random  *rand.Rand
	workers []*FaultWorker
	shared  [][]int32         // prefixes that are stored
	config  map[string]string // settings of the server that rows change, as they were
}

// openAdmin connects to an empty server.
func openAdmin(ctx context.Context, url string) (*redis.Client, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	opts.MaxRetries = -1
	c := redis.NewClient(opts)
	n, err := c.DBSize(ctx).Result()
	if err == nil && n > 0 {
		err = fmt.Errorf("%w, and it has %d keys", ErrNotEmpty, n)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// flushAndClose leaves the server empty, also when ctx has ended.
func flushAndClose(ctx context.Context, admin *redis.Client) error {
	return errors.Join(admin.FlushAll(context.WithoutCancel(ctx)).Err(), admin.Close())
}

// limit makes the server refuse to store beyond so many bytes.
func (b *faultBench) limit(ctx context.Context, bytes int64) error {
	return errors.Join(b.admin.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err(), b.admin.ConfigSet(ctx, "maxmemory", fmt.Sprint(bytes)).Err())
}

// restore undoes limit.
func (b *faultBench) restore(ctx context.Context) error {
	var errs []error
	for _, name := range []string{"maxmemory", "maxmemory-policy"} {
		if value, ok := b.config[name]; ok {
			errs = append(errs, b.admin.ConfigSet(ctx, name, value).Err())
		}
	}
	return errors.Join(errs...)
}

// used is what the server's memory holds now.
func (b *faultBench) used(ctx context.Context) (int64, error) {
	info, err := b.admin.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	var n int64
	_, err = fmt.Sscan(info["Memory"]["used_memory"], &n)
	return n, err
}

// start starts a worker behind the proxy, or past it, that has computed enough to know how fast it is.
func (b *faultBench) start(ctx context.Context, proxied bool, hotBytes, spillBytes int64) (*FaultWorker, error) {
	url := b.o.Server
	if proxied {
		url = "redis://" + b.proxy.Addr()
	}
	w, err := b.o.Start(ctx, FaultNode{RedisURL: url, HotBytes: hotBytes, SpillBytes: spillBytes})
	if err != nil {
		return nil, err
	}
	b.workers = append(b.workers, w)
	for _, n := range []int{b.o.NewTokens, b.o.PrefixTokens} {
		if _, err := w.Replica.Complete(ctx, worker.Request{Tokens: b.prompt(n), NoCache: true, MaxTokens: 1}); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (b *faultBench) stop(ctx context.Context) error {
	var errs []error
	for _, w := range b.workers {
		brief, cancel := context.WithTimeout(ctx, time.Second) // what is queued does not matter any more
		errs = append(errs, w.Close(brief))
		cancel()
	}
	b.workers = nil
	return errors.Join(errs...)
}

// prompt is n tokens that nobody has seen.
func (b *faultBench) prompt(n int) []int32 { return randomTokens(b.random, n) }

func randomTokens(random *rand.Rand, n int) []int32 {
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = int32(259 + random.IntN(700)) // behind the control and byte tokens of the shipped vocabulary
	}
	return tokens
}

func (b *faultBench) prompts(k, n int) [][]int32 {
	all := make([][]int32, k)
	for i := range all {
		all[i] = b.prompt(n)
	}
	return all
}
