package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kvtier/kvtier/tiered"
)

// byteSize is a flag such as 256MiB.
type byteSize int64

var _ pflag.Value = (*byteSize)(nil)

func (b *byteSize) String() string { return humanize.IBytes(uint64(*b)) }

func (b *byteSize) Set(s string) error {
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<50 {
		return usagef("%q is not a size such as 256MiB", s)
	}
	*b = byteSize(n)
	return nil
}

func (b *byteSize) Type() string { return "size" }

// hotSize is the size of a hot tier, or none.
type hotSize struct{ byteSize }

func (h *hotSize) String() string {
	if h.byteSize == tiered.NoHotTier {
		return "none"
	}
	return h.byteSize.String()
}

func (h *hotSize) Set(s string) error {
	if s == "none" {
		h.byteSize = tiered.NoHotTier
		return nil
	}
	return h.byteSize.Set(s)
}

// unless is b, or 0 for the default of whoever takes it if the flag was not given.
func (b byteSize) unless(fl *pflag.FlagSet, name string) int64 {
	if !fl.Changed(name) {
		return 0
	}
	return int64(b)
}

// inFlags names the flags in errors about options of the cache.
func inFlags(err error) error {
	flags := map[string]string{"HotBytes": "--hot-bytes", "SpillBytes": "--spill-bytes"}
	if all, ok := err.(interface{ Unwrap() []error }); ok { // each of those joined is looked at on its own
		named := slices.Clone(all.Unwrap())
		for i := range named {
			named[i] = inFlags(named[i])
		}
		return errors.Join(named...)
	}
	bad, ok := errors.AsType[*tiered.BudgetError](err)
	if !ok || flags[bad.Field] == "" {
		return err
	}
	named := *bad
	named.Field = flags[bad.Field]
	return &named
}

// listenFlags are what the two servers have in common.
type listenFlags struct {
	listen   string
	token    string
	insecure bool
	logLevel slog.Level
}

func (l *listenFlags) add(cmd *cobra.Command, listen string) {
	cmd.Flags().StringVar(&l.listen, "listen", listen, "`address` of the HTTP API; beyond loopback it needs --token or --insecure")
	cmd.Flags().StringVar(&l.token, "token", "", "bearer token that clients have to send")
	cmd.Flags().BoolVar(&l.insecure, "insecure", false, "listen beyond loopback without a token")
	cmd.Flags().TextVar(&l.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
}

func (l *listenFlags) logger() *slog.Logger {
	return newLogger(os.Stderr, l.logLevel)
}

// newLogger writes JSON in which what has a name or a unit is written with it: JSON alone would make bytes of a hash, nanoseconds of a
// duration and numbers of names.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch v := a.Value.Any().(type) {
		case time.Time: // RFC 3339 by itself
		case fmt.Stringer:
			a.Value = slog.StringValue(v.String())
		}
		return a
	}}))
}
