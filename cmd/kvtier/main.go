// Command kvtier shares the K/V caches of LLM inference workers through Redis. Each subcommand has a file of its own; this package
// is the only one that reads flags and environment and that puts concrete parts together.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
)

// Exit codes, the same for every subcommand.
const (
	exitOK     = 0
	exitFailed = 1 // the work was tried and did not succeed
	exitUsage  = 2 // wrong flags, missing files, unusable settings: nothing was tried
)

// usageError marks an error that the caller can mend by calling differently.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	// go-redis prints every failed dial to standard error; breaker and watch log changes of state instead.
	redis.SetLogger(silent{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "kvtier:", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "kvtier",
		Short: "Share the K/V caches of LLM inference workers through Redis",
		Long: `kvtier keeps the K/V tensors of hot prompt prefixes in each inference worker's memory and shares colder ones through Redis,
keyed by a hash of the prompt and by the weights that computed them. A coordinator invalidates entries when weights change.

Every flag can also be set in the environment: --redis is KVTIER_REDIS, --hot-bytes is KVTIER_HOT_BYTES. KVTIER_TOKEN_FILE names a file
with the value of --token, and so for all.
Exit codes: 0 done, 1 failed, 2 wrong usage or input.`,
		Example:                    "  kvtier demo\n  kvtier worker --redis redis://127.0.0.1:6379 --coordinator http://127.0.0.1:8090",
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return fromEnvironment(cmd.Flags(), os.LookupEnv)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; see %s --help", err, cmd.CommandPath())
	})
	group(root)
	root.AddCommand(newDemo(), newWorker(), newCoordinator(), newWarmup(), newPin(), newModel(), newBench(), newCheck(), newChaos(), newSecure(), newExplain(), newHealthcheck(),
		newVersion())
	return root
}

// group makes a command that only has subcommands print its help, and refuse a subcommand that does not exist.
func group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, a []string) error {
		if len(a) == 0 {
			return nil
		}
		hint := ""
		if near := cmd.SuggestionsFor(a[0]); len(near) > 0 {
			hint = fmt.Sprintf(", did you mean %s?", strings.Join(near, " or "))
		}
		return usagef("unknown command %q%s; see %s --help", a[0], hint, cmd.CommandPath())
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// args wraps a check of positional arguments so that a wrong number is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if err := check(cmd, a); err != nil {
			return usagef("%w; see %s --help", err, cmd.CommandPath())
		}
		return nil
	}
}
