package main

import (
	"strings"

	"github.com/spf13/pflag"
)

// fromEnvironment gives every flag that was not on the command line the value of its variable: --hot-bytes is KVTIER_HOT_BYTES. A
// list is separated by commas. An empty variable counts as unset.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := lookup(name)
		if f.Changed || !ok || value == "" || failed != nil {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			failed = usagef("%s=%q: %w", name, value, err)
		}
	})
	return failed
}

func envName(flag string) string {
	return "KVTIER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
