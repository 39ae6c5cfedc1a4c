package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/bench"
	"github.com/kvtier/kvtier/store/redisstore"
)

type options struct {
	redis, parts, jsonFile, note, render string
	duration                             time.Duration
	valueBytes, connections              int
	dataBytes                            int64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
	}
	os.Exit(code)
}

// run returns the exit code: 0 done, 1 failed, 2 wrong usage.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	var o options
	f := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.redis, "redis", "", "`URL` of a server without TLS: redis://[user:password@]host:port")
	f.StringVar(&o.parts, "parts", "get,put,hot", "what to measure; hot alone needs no server")
	f.StringVar(&o.jsonFile, "json", "", "also write the figures to `FILE`")
	f.StringVar(&o.note, "note", "", "how server and client are placed, for the report")
	f.StringVar(&o.render, "render", "", "print `FILE`, written by kvtier bench --json, as Markdown and stop")
	f.DurationVar(&o.duration, "duration", time.Minute, "for each part")
	f.IntVar(&o.valueBytes, "value-bytes", 2<<20, "payload of a value")
	f.IntVar(&o.connections, "connections", 2, "of each client")
	f.Int64Var(&o.dataBytes, "data-bytes", 128<<20, "values of each client on the server")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, nil
		}
		return 2, err
	}
	if f.NArg() > 0 {
		return 2, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.render != "" {
		if err := render(stdout, o.render); err != nil {
			return 2, err
		}
		return 0, nil
	}
	r := &report{Machine: bench.ThisMachine(), Versions: versionsOf(), Note: o.note,
		Settings: settings{ValueBytes: o.valueBytes, Connections: o.connections, DataBytes: o.dataBytes}}
	if code, err := o.measure(ctx, r, stderr); err != nil {
		return code, err
	}
	r.markdown(stdout)
	if o.jsonFile != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return 1, err
		}
		if err := os.WriteFile(o.jsonFile, append(b, '\n'), 0o644); err != nil {
			return 1, err
		}
	}
	return 0, nil
}

func (o *options) measure(ctx context.Context, r *report, stderr io.Writer) (int, error) {
	want := map[string]bool{}
	for p := range strings.SplitSeq(o.parts, ",") {
		if p != "get" && p != "put" && p != "hot" {
			return 2, fmt.Errorf("--parts %q: want get, put, hot", p)
		}
		want[p] = true
	}
	if _, err := bench.LayoutOf(o.valueBytes); err != nil || o.valueBytes > 4<<20 {
		return 2, fmt.Errorf("--value-bytes %d: want a multiple of 8192 up to 4 MiB", o.valueBytes)
	}
	if o.connections < 1 || o.connections > 64 || o.dataBytes < int64(o.valueBytes) || o.dataBytes > 8<<30 || o.duration < 0 {
		return 2, errors.New("--connections, --data-bytes or --duration is out of range")
	}
	seed := strings.ToLower(rand.Text()[:8])
	var at redisstore.Options
	if o.redis != "" {
		var err error
		if at, err = redisstore.ParseURL(o.redis); err != nil {
			return 2, err
		}
		if at.Mode != redisstore.Single || at.TLS != nil || strings.HasPrefix(at.Addrs[0], "/") {
			return 2, errors.New("--redis: want one server over TCP without TLS, redis://host:port: not every rival takes the others")
		}
		if r.Server, err = bench.OpenServer(ctx, o.redis); err != nil {
			return 1, err
		}
		for _, w := range r.Server.Warnings {
			fmt.Fprintln(stderr, "warning:", w)
		}
	} else if want["get"] || want["put"] {
		return 2, errors.New("no server: give --redis redis://host:6379, or --parts hot; ./run.sh starts one of its own")
	}
	if want["get"] || want["put"] {
		if err := o.measureRemote(ctx, r, want, at, seed, stderr); err != nil {
			return 1, err
		}
	}
	if want["hot"] {
		if err := o.measureHot(ctx, r, at, seed, stderr); err != nil {
			return 1, err
		}
	}
	return 0, nil
}

// measureRemote puts all contenders and kvtier into the same rounds.
func (o *options) measureRemote(ctx context.Context, r *report, want map[string]bool, at redisstore.Options, seed string, stderr io.Writer) (err error) {
	fmt.Fprintln(stderr, "storing values")
	// go-redis and rueidis do not add the port
	all, err := contenders(withPort(at.Addrs[0]), at.Username, at.Password, o.connections, o.valueBytes)
	defer func() {
		for _, c := range all {
			if c.close != nil {
				c.close()
			}
		}
	}()
	if err != nil {
		return err
	}
	writers := int64(1) // kvtier
	for _, c := range all {
		if c.put != nil {
			writers++
		}
	}
	if err := r.Server.Room(writers * o.dataBytes); err != nil {
		return err
	}
	traffic, err := bench.OpenTraffic(ctx, r.Server, o.connections, o.valueBytes, o.dataBytes, seed)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, traffic.Close(ctx)) }()
	run := newRunner(newValues(o.valueBytes, o.dataBytes), o.connections, seed)
	defer func() { err = errors.Join(err, remove(ctx, at, run, all)) }()
	library := map[string]string{}
	gets, puts := traffic.Gets(), traffic.Puts()
	for _, c := range all {
		library[c.name], library[c.putName] = c.library, c.library
		if err := run.load(ctx, c); err != nil {
			return err
		}
		gets = append(gets, run.gets(c))
		if c.put != nil {
			puts = append(puts, run.puts(c))
		}
	}
	gets[2].Name, gets[3].Name = "kvtier, not verified", "kvtier, header and checksum verified"
	puts[2].Name, puts[3].Name = "kvtier, sealed with header and checksum", "kvtier, sealed before"
	if want["get"] {
		series, err := o.rounds(ctx, r, gets, "get", stderr)
		if err != nil {
			return err
		}
		r.Get = rows(series, library, 3)
	}
	if want["put"] {
		series, err := o.rounds(ctx, r, puts, "put", stderr)
		if err != nil {
			return err
		}
		r.Put = rows(series, library, 2)
	}
	return nil
}

func (o *options) measureHot(ctx context.Context, r *report, at redisstore.Options, seed string, stderr io.Writer) error {
	addr := ""
	if len(at.Addrs) > 0 {
		addr = withPort(at.Addrs[0])
	}
	all, err := hotContenders(ctx, addr, at.Username, at.Password, bench.KeyPrefix+"rivals:"+seed+":")
	defer func() {
		for _, h := range all {
			if h.close != nil {
				h.close()
			}
		}
	}()
	if err != nil {
		return err
	}
	var methods []bench.Method
	for _, h := range all {
		methods = append(methods, h.method(1), h.method(2))
	}
	series, err := o.rounds(ctx, r, methods, "hot", stderr)
	if err != nil {
		return err
	}
	for i, s := range series {
		ns := s.Of(bench.Sample.NsPerOp)
		r.Hot = append(r.Hot, hotRow{Name: s.Name, Library: all[i/2].library, Gives: all[i/2].gives, Goroutines: 1 + i%2, NsPerHit: ns.Median, Min: ns.Min, Max: ns.Max,
			Allocs: s.Of(bench.Sample.AllocsPerOp).Median, AllocBytes: s.Of(bench.Sample.AllocBytesPerOp).Median})
	}
	return nil
}

// rounds says how far it is every few seconds.
func (o *options) rounds(ctx context.Context, r *report, methods []bench.Method, what string, stderr io.Writer) ([]bench.Series, error) {
	plan := bench.PlanFor(o.duration, len(methods))
	r.Settings.Rounds, r.Settings.Seconds = plan.Rounds, plan.Slice.Seconds()
	done, next := 0, time.Now()
	return bench.Rounds(ctx, plan, methods, func() {
		if done++; time.Now().After(next) {
			fmt.Fprintf(stderr, "%s: %d of %d\n", what, done, plan.Rounds*len(methods))
			next = time.Now().Add(5 * time.Second)
		}
	})
}

// remove deletes what the contenders wrote, although ctx may have ended.
func remove(ctx context.Context, at redisstore.Options, run *runner, all []*contender) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: withPort(at.Addrs[0]), Username: at.Username, Password: at.Password})
	defer c.Close()
	for _, x := range all {
		if x.put == nil {
			continue
		}
		if err := c.Unlink(ctx, run.keysOf(x)...).Err(); err != nil {
			return err
		}
	}
	return nil
}

func withPort(addr string) string {
	if strings.Contains(addr, ":") {
		return addr
	}
	return addr + ":6379"
}
