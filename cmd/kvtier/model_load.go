package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/httpapi"
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
	if err := checkWorkerURL(base); err != nil {
		return loaded, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // large files
	defer cancel()
	b, err := postWorker(ctx, base, "/v1/weights", token, map[string]string{"checkpoint": checkpoint})
	if err != nil {
		if e, ok := errors.AsType[*httpapi.Error](err); ok && (e.Status == http.StatusNotFound || e.Status == http.StatusNotImplemented) {
			return loaded, usageError{err}
		}
		return loaded, err
	}
	if err := json.Unmarshal(b, &loaded); err != nil || len(loaded.Weights) < 12 {
		return loaded, fmt.Errorf("%s: not the answer of a kvtier worker", base)
	}
	return loaded, nil
}
