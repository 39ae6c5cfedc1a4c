package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/bench"
	"github.com/kvtier/kvtier/internal/bench/loss"
)

// benchFlags are shared by the subcommands of bench.
type benchFlags struct {
	asJSON   bool
	duration time.Duration
	redis    string
	values   sizeList
	conns    []int
	data     byteSize
}

// benchReport is what bench --json prints; a subcommand fills in its own part. Field names are stable.
type benchReport struct {
	Machine bench.Machine       `json:"machine"`
	Server  *bench.Server       `json:"server,omitempty"`
	Remote  []bench.RemoteRow   `json:"remote,omitempty"`
	Probe   *bench.ProbeResult  `json:"probe,omitempty"`
	Hot     *bench.HotResult    `json:"hot,omitempty"`
	Codec   []bench.CodecResult `json:"codec,omitempty"`
	Hash    *bench.HashResult   `json:"hash,omitempty"`
	Advise  []bench.Advice      `json:"advise,omitempty"`
	Warmup  *bench.WarmupResult `json:"warmup,omitempty"`
}

func newBench() *cobra.Command {
	f := &benchFlags{values: sizeList{2 << 20}, data: 256 << 20}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the tier on this machine, and say for which models it pays",
		Long: `bench measures the parts of the tier on the machine it runs on. What is compared runs in the same process in rounds that take turns; a figure is
the median of the rounds, in parentheses the lowest and the highest. GB is 1e9 bytes of K/V. Other work on the machine shows in the figures:
look at the ranges, trust ratios more than rates, and run the client where your workers run.`,
		Example: `  kvtier bench all --redis redis://127.0.0.1:6379
  kvtier bench remote --redis redis://127.0.0.1:6379 --value-bytes 1MiB,2MiB --connections 6,2,12
  kvtier bench advise --model Llama-3-8B --redis redis://127.0.0.1:6379
  kvtier bench hot --json | jq .hot.ns_per_hit`,
	}
	group(cmd)
	cmd.PersistentFlags().BoolVar(&f.asJSON, "json", false, "print one JSON document")
	cmd.PersistentFlags().DurationVar(&f.duration, "duration", 0, "how long to measure each part (default 5s; remote 15s for each value size and number of connections)")
	cmd.AddCommand(
		f.command("hot", "Measure hits in the hot tier, pinning and releasing included", "  kvtier bench hot\n  kvtier bench hot --duration 20s --json", f.hot),
		f.command("codec", "Measure encoding, checksums and compression on one core", "  kvtier bench codec", f.codec),
		f.command("hash", "Measure the hashing of prompts on one core", "  kvtier bench hash", f.hash),
		f.withRemote(f.command("remote", "Measure Redis next to the most that this connection can carry",
			"  kvtier bench remote --redis redis://127.0.0.1:6379\n  kvtier bench remote --redis unix:///run/redis.sock --value-bytes 2MiB,32MiB --connections 6,2,12", f.remote)),
		f.withRemote(f.command("all", "All of these; without --redis, those that need none", "  kvtier bench all --redis redis://127.0.0.1:6379 --json > bench.json", f.all)),
		f.newAdvise(),
		newBenchFaults(f),
		f.newWarmup(),
	)
	return cmd
}

// command is a subcommand that fills in part of the report.
func (f *benchFlags) command(name, short, example string, do func(context.Context, io.Writer, *benchReport) error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Example: example, Args: args(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		report := &benchReport{Machine: bench.ThisMachine()}
		if err := do(cmd.Context(), cmd.ErrOrStderr(), report); err != nil {
			return err
		}
		return report.show(cmd.OutOrStdout(), f.asJSON)
	}}
}

func (f *benchFlags) withRemote(cmd *cobra.Command) *cobra.Command {
	cmd.Long = cmd.Short + `.

It writes values under kvtier-bench: with a TTL of 10 minutes and deletes them at the end. The ceiling, "raw", is hand-written RESP over as many connections
to the same server, one or two requests in flight on each, whichever is faster, into reused buffers. A value is the K/V of a block, stored in
parts as that of a model.`
	cmd.Flags().StringVar(&f.redis, "redis", "", "`URL` of the server to measure: redis://[user:password@]host:port, rediss:// or unix://")
	cmd.Flags().Var(&f.values, "value-bytes", "`sizes` of a block's K/V, separated by commas; a multiple of 8KiB up to 4MiB, or of 2MiB above")
	cmd.Flags().IntSliceVar(&f.conns, "connections", []int{6}, "numbers of connections, separated by commas; a worker has 6")
	cmd.Flags().Var(&f.data, "data-bytes", "how much is on the server at any time, at most")
	return cmd
}

// maxBenchBytes and maxBenchConnections bound what a slip of the finger can ask of a server that others use.
const (
	maxBenchBytes       = 16 << 30
	maxBenchConnections = 64
)

func (f *benchFlags) check() error {
	if f.duration < 0 || f.duration > time.Hour {
		return usagef("--duration %v: want up to 1h", f.duration)
	}
	if f.data < 1<<20 || f.data > maxBenchBytes {
		return usagef("--data-bytes %v: want 1MiB to 16GiB", &f.data)
	}
	for _, n := range f.conns {
		if n < 1 || n > maxBenchConnections {
			return usagef("--connections %d: want 1 to %d", n, maxBenchConnections)
		}
	}
	for _, v := range f.values {
		if _, err := bench.LayoutOf(v); err != nil {
			return usagef("--value-bytes: %w", err)
		}
		if v > int(f.data) {
			return usagef("--value-bytes %s is more than --data-bytes %v", humanize.IBytes(uint64(v)), &f.data)
		}
	}
	return nil
}

// local is the time for a part that needs no server.
func (f *benchFlags) local() time.Duration {
	if f.duration == 0 {
		return 5 * time.Second
	}
	return f.duration
}

func (f *benchFlags) hot(ctx context.Context, stderr io.Writer, r *benchReport) error {
	bar := newProgress(stderr, "hot tier", bench.HotSlices(f.local()))
	defer bar.done()
	hot, err := bench.Hot(ctx, f.local(), bar.step)
	r.Hot = &hot
	return err
}

func (f *benchFlags) codec(ctx context.Context, stderr io.Writer, r *benchReport) (err error) {
	bar := newProgress(stderr, "codec", loss.Windows+bench.CodecSlices(f.local()))
	defer bar.done()
	if r.Codec, err = bench.Codec(ctx, f.local(), bar.step); err != nil {
		return err
	}
	for i, c := range r.Codec {
		if c.Name == codec.Int8.String() {
			r.Codec[i].Loss, err = loss.Measure(ctx, block.QuantInt8, loss.Windows, bar.step)
		}
	}
	return err
}

func (f *benchFlags) hash(ctx context.Context, stderr io.Writer, r *benchReport) error {
	bar := newProgress(stderr, "hash", bench.PlanFor(f.local(), 1).Rounds)
	defer bar.done()
	hash, err := bench.Hash(ctx, f.local(), bar.step)
	r.Hash = &hash
	return err
}

func (f *benchFlags) remote(ctx context.Context, stderr io.Writer, r *benchReport) error {
	if f.redis == "" {
		return usagef("no server to measure: give --redis redis://host:6379 (for one on this machine: docker run --rm -p 6379:6379 redis:8.0)")
	}
	o := bench.RemoteOptions{ValueBytes: f.values, Connections: f.conns, DataBytes: int64(f.data), Duration: f.duration,
		Seed: strings.ToLower(rand.Text()[:8])}
	bar := newProgress(stderr, "remote", o.Slices())
	o.Step = bar.step
	report, err := bench.Remote(ctx, f.redis, o)
	bar.done()
	for _, w := range report.Server.Warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	if err != nil {
		return benchRefused(err)
	}
	r.Server, r.Remote, r.Probe = &report.Server, report.Remote, &report.Probe
	return nil
}

func (f *benchFlags) all(ctx context.Context, stderr io.Writer, r *benchReport) error {
	for _, do := range []func(context.Context, io.Writer, *benchReport) error{f.hash, f.hot, f.codec} {
		if err := do(ctx, stderr, r); err != nil {
			return err
		}
	}
	if f.redis == "" {
		fmt.Fprintln(stderr, "remote is left out: it needs --redis redis://host:6379")
		return nil
	}
	return f.remote(ctx, stderr, r)
}

// benchRefused tells what the caller can mend from what failed.
func benchRefused(err error) error {
	for _, bad := range []error{bench.ErrOneServer, bench.ErrNoRoom, bench.ErrValueBytes} {
		if errors.Is(err, bad) {
			return usageError{err}
		}
	}
	if strings.Contains(err.Error(), "valid forms:") {
		return usageError{err}
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%w: is it running, and the URL right?", err)
	}
	return err
}

// sizeList is a flag such as 1MiB,2MiB.
type sizeList []int

var _ pflag.Value = (*sizeList)(nil)

func (l *sizeList) String() string {
	var s []string
	for _, n := range *l {
		s = append(s, strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", ""))
	}
	return strings.Join(s, ",")
}

func (l *sizeList) Set(s string) error {
	var sizes sizeList
	for part := range strings.SplitSeq(s, ",") {
		var b byteSize
		if err := b.Set(strings.TrimSpace(part)); err != nil {
			return err
		}
		sizes = append(sizes, int(b))
	}
	*l = sizes
	return nil
}

func (l *sizeList) Type() string { return "sizes" }
