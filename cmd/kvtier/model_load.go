package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/worker"
)

// load asks workers to load a checkpoint while they run, and activates it if wanted.
func (f *modelFlags) load() *cobra.Command {
	var workers []string
	var token, activate string
	cmd := &cobra.Command{
		Use:   "load CHECKPOINT",
		Short: "Make running workers load a checkpoint",
		Long: `load names a checkpoint to workers: one of their --checkpoint files, or a .gguf file in their --checkpoint-dir. A worker on its own
serves it at once. Workers with a coordinator register it; they serve it when it is activated (--activate MODEL, or kvtier model activate).`,
		Example: "  kvtier model load step-900.gguf --worker http://127.0.0.1:8080 --activate shakespeare",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			var all []worker.Loaded
			for _, w := range workers {
				loaded, err := loadOn(cmd.Context(), w, token, a[0])
				if err != nil {
					return err
				}
				all = append(all, loaded)
			}
			if activate != "" {
				c, err := f.client()
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.Activate(cmd.Context(), activate, all[0].Weights, false); err != nil {
					return refused(err)
				}
				for i := range all {
					all[i].State = "active"
				}
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			t := newTable("worker", "version", "weights", "variant", "state", "answers with it")
			for i, l := range all {
				t.row(workers[i], l.Label, l.Weights[:12], l.Variant, l.State, yesNo(l.Resident))
			}
			return t.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringSliceVar(&workers, "worker", []string{"http://127.0.0.1:8080"}, "`URL` of a worker; repeat for more")
	cmd.Flags().StringVar(&token, "worker-token", "", "bearer token of the workers")
	cmd.Flags().StringVar(&activate, "activate", "", "make it the active version of this `model` as well")
	return cmd
}

func loadOn(ctx context.Context, base, token, checkpoint string) (loaded worker.Loaded, err error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return loaded, usagef("--worker: %q is not an http URL", base)
	}
	body, err := json.Marshal(map[string]string{"checkpoint": checkpoint})
	if err != nil {
		return loaded, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // large files
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(base, "/")+"/v1/weights", bytes.NewReader(body))
	if err != nil {
		return loaded, usagef("--worker: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return loaded, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return loaded, err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error struct{ Message string } }
		_ = json.Unmarshal(b, &e) // without a message the status has to do
		err = errors.New(strings.TrimSpace(fmt.Sprintf("%s: %s %s", base, resp.Status, e.Error.Message)))
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusNotImplemented {
			return loaded, usageError{err}
		}
		return loaded, err
	}
	if err := json.Unmarshal(b, &loaded); err != nil || len(loaded.Weights) < 12 {
		return loaded, fmt.Errorf("%s: not the answer of a kvtier worker", base)
	}
	return loaded, nil
}
