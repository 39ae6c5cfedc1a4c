package main

import (
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// fromEnvironment gives every flag that was not on the command line the value of its variable: --hot-bytes is KVTIER_HOT_BYTES. What should
// not stand in an environment, such as a token, may stand in a file whose name does: KVTIER_TOKEN_FILE. A list is separated by commas. An
// empty variable counts as unset, except for flags that narrow what a command takes away.
func fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var failed error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || failed != nil {
			return
		}
		name := envName(f.Name)
		value, set := lookup(name)
		file, _ := lookup(name + "_FILE")
		switch {
		case value != "" && file != "":
			failed = usagef("%s and %s_FILE are both set: leave one out", name, name)
		case file != "":
			failed = fromFile(flags, f.Name, name+"_FILE", file)
		case set && value == "" && f.Annotations[narrows] != nil:
			failed = usagef("%s is set and empty, and would let this reach further than meant: give it a value, or unset it", name)
		case value != "":
			if err := flags.Set(f.Name, value); err != nil {
				failed = usagef("%s=%q: %w", name, value, err)
			}
		}
	})
	return failed
}

// fromFile gives a flag what a file contains. Errors do not repeat it: it may be a secret.
func fromFile(flags *pflag.FlagSet, flag, variable, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return usagef("%s: %w", variable, err)
	}
	value := strings.TrimSpace(string(b))
	if value == "" {
		return usagef("%s: %s is empty", variable, file)
	}
	if flags.Set(flag, value) != nil {
		return usagef("%s: the content of %s does not fit --%s", variable, file, flag)
	}
	return nil
}

// narrows marks flags that confine what a command takes away: empty must not be read as all.
const narrows = "narrows"

func envName(flag string) string {
	return "KVTIER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
