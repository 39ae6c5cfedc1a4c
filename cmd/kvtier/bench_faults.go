package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/bench"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker/llama"
)

type benchFaultsFlags struct {
	*benchFlags
	o     bench.FaultOptions
	write string
}

func newBenchFaults(parent *benchFlags) *cobra.Command {
	f := &benchFaultsFlags{benchFlags: parent}
	cmd := &cobra.Command{
		Use:   "faults",
		Short: "Break Redis in every way and compare answers and times with those of no cache at all",
		Long: `faults puts a proxy in front of a Redis and makes it refuse, hang, slow down, forget, fill up, cut off and corrupt, while a worker with the shipped
model answers each prompt twice, with the cache and without. It prints the ratio of the times to first token, whether every answer was the same,
and how long the way back took. The two kinds of requests take turns of five, in one process.

It flushes, fills and limits the server, which therefore has to be empty and yours. Without --redis it uses a fake one in this process, which
is not as fast and has no limit of memory: good for a look, not for figures.

With --json it prints an array with one object for each fault: fault, requests, failed, identical, ttft_p50_ratio, ttft_p99_ratio, recovery_s, and what
they were made of. It exits with 1 when a request failed, an answer differed or a tenant was served what is another's, not when a ratio is missed.`,
		Example: `  redis-server --port 6399 --save '' & kvtier bench faults --redis redis://127.0.0.1:6399
  kvtier bench faults --only refused,blackhole --json | jq '.[] | {fault, ttft_p50_ratio}'
  kvtier bench faults --redis redis://127.0.0.1:6399 --write docs/FAULTS.md`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.redis, "redis", "", "`URL` of an empty server to break: redis://[user:password@]host:port (default: a fake one in this process)")
	fl.IntVar(&f.o.Requests, "requests", 40, "requests with the cache, and as many without, for each fault")
	fl.IntVar(&f.o.PrefixTokens, "prefix-tokens", 1500, "length of prompts whose prefix is reused")
	fl.IntVar(&f.o.NewTokens, "new-tokens", 512, "length of prompts that are new")
	fl.StringSliceVar(&f.o.Only, "only", nil, "measure these `faults` only")
	fl.Uint64Var(&f.o.Seed, "seed", 0, "of prompts and of what the proxy draws (default: another one each time)")
	fl.StringVar(&f.write, "write", "", "`file` in Markdown whose part between the markers is replaced by the table")
	return cmd
}

const maxFaultRequests = 10_000

func (f *benchFaultsFlags) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	o := f.o
	if o.Requests < 1 || o.Requests > maxFaultRequests {
		return usagef("--requests %d: want 1 to %d", o.Requests, maxFaultRequests)
	}
	for name, n := range map[string]int{"--prefix-tokens": o.PrefixTokens, "--new-tokens": o.NewTokens} {
		if n < 64 || n > 2000 {
			return usagef("%s %d: want 64 to 2000, for the shipped model's context is 2048", name, n)
		}
	}
	var doc *markedFile
	if f.write != "" {
		if doc, err = readMarked(f.write); err != nil {
			return err
		}
	}
	if o.Seed == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Seed = binary.LittleEndian.Uint64(b[:])
	}
	server := "a fake Redis in this process"
	if o.Server = f.redis; o.Server == "" {
		m, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer m.Close()
		o.Server, o.Upstream, o.Fake = "redis://"+m.Addr(), m.Addr(), true
	} else {
		u, err := url.Parse(o.Server)
		if err != nil || u.Scheme != "redis" || u.Port() == "" {
			return usagef("--redis: want redis://[user:password@]host:port of one server without TLS")
		}
		o.Upstream = u.Host
		s, err := bench.OpenServer(ctx, o.Server)
		if err != nil {
			return benchRefused(err)
		}
		server = strings.TrimSpace(s.Product + " " + s.Version)
	}
	names, err := o.FaultNames()
	if err != nil {
		return usagef("--only: %w", err)
	}
	o.Start = func(ctx context.Context, n bench.FaultNode) (*bench.FaultWorker, error) {
		return startFaultWorker(ctx, n)
	}
	bar := newProgress(stderr, "faults", len(names))
	o.Step = func(string) { bar.step() }
	rows, err := bench.Faults(ctx, o)
	bar.done()
	if errors.Is(err, bench.ErrNotEmpty) {
		return usageError{err}
	} else if err != nil {
		return benchRefused(err)
	}
	if doc != nil {
		if err := doc.replace(faultsMarkdown(rows, o, server)); err != nil {
			return err
		}
	}
	if f.asJSON {
		err = printJSON(stdout, rows)
	} else {
		err = showFaults(stdout, rows, o, server)
	}
	return errors.Join(err, broken(rows))
}

// startFaultWorker starts a worker as kvtier worker does, on its own, with the shipped model.
func startFaultWorker(ctx context.Context, n bench.FaultNode) (*bench.FaultWorker, error) {
	node, err := startNode(ctx, nodeOptions{
		model: "shakespeare", checkpoints: shippedCheckpoints(llama.Options{})[:1], redis: n.RedisURL,
		writePolicy: tiered.WriteThrough, fillLease: true, hotBytes: n.HotBytes, spillBytes: n.SpillBytes, ttl: time.Hour, fetchTimeout: time.Second,
		sequences: 4, logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return &bench.FaultWorker{
		Replica: node.replica, Cache: node.cache, Close: node.Close,
		Refusing: func() bool { return node.breaker.State() != store.BreakerClosed },
	}, nil
}

// broken says which rows broke a promise that has no tolerance.
func broken(rows []bench.FaultRow) error {
	var errs []error
	for _, r := range rows {
		if r.Failed > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d requests failed", r.Fault, r.Failed, r.Requests))
		}
		if !r.Identical {
			errs = append(errs, fmt.Errorf("%s: answers differ from those without a cache", r.Fault))
		}
		if r.Welch != nil && r.Reused > 0 {
			errs = append(errs, fmt.Errorf("%s: one tenant was served what another has", r.Fault))
		}
	}
	return errors.Join(errs...)
}

func faultCells(r bench.FaultRow) []string {
	recovery, target := "–", "–"
	if r.Recovery != nil {
		recovery = fmt.Sprintf("%.2f s", *r.Recovery)
	}
	if r.Target != "" {
		target = r.Target + map[bool]string{true: ": yes", false: ": NO"}[r.Met]
	}
	return []string{r.Fault, fmt.Sprint(r.Requests), fmt.Sprint(r.Failed), yesNo(r.Identical), fmt.Sprintf("%.3f", r.P50Ratio), fmt.Sprintf("%.3f", r.P99Ratio),
		fmt.Sprintf("%.1f", r.PlainP50Ms), fmt.Sprintf("%+.0f µs", r.AddedP50Us), fmt.Sprintf("%+.1f ms", r.AddedMaxMs), fmt.Sprintf("%.0f %%", 100*r.Reused), recovery, target}
}

var faultColumns = []string{"fault", "requests", "failed", "identical", "TTFT p50 ×", "p99 ×", "without, ms", "added p50", "added most", "reused", "recovery", "target"}

func showFaults(w io.Writer, rows []bench.FaultRow, o bench.FaultOptions, server string) error {
	t := newTable(faultColumns...)
	for _, r := range rows {
		t.row(faultCells(r)...)
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", r.Fault, r.Note)
		}
	}
	m := bench.ThisMachine()
	_, err := fmt.Fprintf(w, "server: %s; seed %d\nmachine: %s, %d CPUs, %s, %s, load %s\n", server, o.Seed, m.CPU, m.CPUs, m.OS, m.Go, m.Load)
	return err
}

func faultsMarkdown(rows []bench.FaultRow, o bench.FaultOptions, server string) string {
	var b strings.Builder
	m := bench.ThisMachine()
	fmt.Fprintf(&b, "Measured %s with `kvtier bench faults --requests %d --prefix-tokens %d --new-tokens %d --seed %d` against %s.\nMachine: %s, %d CPUs, %s, %s, load %s.\n\n",
		time.Now().UTC().Format(time.DateOnly), o.Requests, o.PrefixTokens, o.NewTokens, o.Seed, server, m.CPU, m.CPUs, m.OS, m.Go, m.Load)
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(faultColumns)
	line(strings.Split(strings.Repeat("---,", len(faultColumns)-1)+"---", ","))
	for _, r := range rows {
		line(faultCells(r))
	}
	b.WriteString("\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "- `%s`: %s", r.Fault, r.About)
		if r.Note != "" {
			fmt.Fprintf(&b, "; %s", r.Note)
		}
		b.WriteString(".\n")
	}
	return b.String()
}

// markedFile is a file of which a part between two markers is replaced.
type markedFile struct {
	path         string
	mode         os.FileMode
	before, then []byte
}

const (
	beginMarker = "<!-- results: begin"
	endMarker   = "<!-- results: end"
)

func readMarked(path string) (*markedFile, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, usagef("--write: %w", err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("--write: %w", err)
	}
	begin := bytes.Index(text, []byte(beginMarker))
	end := bytes.Index(text, []byte(endMarker))
	if begin < 0 || end < begin {
		return nil, usagef("--write %s: no lines that begin with %q and %q", path, beginMarker, endMarker)
	}
	begin += bytes.IndexByte(text[begin:], '\n') + 1
	return &markedFile{path, info.Mode().Perm(), text[:begin], text[end:]}, nil
}

func (f *markedFile) replace(part string) error {
	text := append(append(bytes.Clone(f.before), "\n"+part+"\n"...), f.then...)
	return os.WriteFile(f.path, text, f.mode)
}
