package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A variable that is misspelt in a deployment is a setting that is silently the default.
func TestDeploymentsSetFlagsThatExist(t *testing.T) {
	known := map[string]bool{}
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known[envName(f.Name)], known[envName(f.Name)+"_FILE"] = true, true })
		for _, c := range cmd.Commands() {
			visit(c)
		}
	}
	visit(newRoot())
	variable := regexp.MustCompile(`\bKVTIER_[A-Z_]+\b`)
	scripts := map[string]bool{"KVTIER_SMOKE_KEEP": true, "KVTIER_SMOKE_MODES": true, "KVTIER_PULL_TIMEOUT": true}
	found := 0
	check := func(path string) {
		t.Helper()
		for _, name := range variable.FindAllString(readFile(t, path), -1) {
			found++
			if !known[name] && !scripts[name] {
				t.Errorf("%s: %s belongs to no flag", path, name)
			}
		}
	}
	check("../../docker-compose.yml")
	err := fs.WalkDir(os.DirFS("../../deploy"), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".service") || strings.HasSuffix(path, ".sh")) {
			check(filepath.Join("../../deploy", path))
		}
		return err
	})
	if err != nil || found < 30 {
		t.Errorf("%d variables found, %v", found, err)
	}
}
