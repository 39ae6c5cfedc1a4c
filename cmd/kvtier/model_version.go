package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/worker/llama"
	"github.com/kvtier/kvtier/worker/quant"
)

// register makes weights known by what they are: a file's bytes, digests, or words that stand for them.
func (f *modelFlags) register() *cobra.Command {
	var file, kvQuant string
	var blockTokens int
	var req coordinator.RegisterRequest
	cmd := f.change("register MODEL", "Make weights known, and active in the same step with --activate", cobra.ExactArgs(1),
		func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
			req := req
			named := 0
			for _, s := range []string{file, req.Weights, req.Declared} {
				if s != "" {
					named++
				}
			}
			switch {
			case named != 1:
				return coordinator.Result{}, usagef("weights are named by one of --file, --weights and --declared")
			case file != "":
				q, err := block.ParseQuant(kvQuant)
				if err != nil {
					return coordinator.Result{}, usagef("--kv-quant: %w", err)
				}
				id, err := identityOf(file, blockTokens, q)
				if err != nil {
					return coordinator.Result{}, usageError{err}
				}
				req.Weights, req.Layout = id.Weights.String(), id.Layout.String()
				if req.Label == "" {
					req.Label = labelOf(file)
				}
			case req.Layout == "":
				return coordinator.Result{}, usagef("--weights and --declared need --layout: K/V of another layout are other K/V")
			}
			return c.Add(ctx, a[0], req)
		})
	fl := cmd.Flags()
	fl.StringVar(&file, "file", "", "GGUF `file` or directory of a Hugging Face checkpoint: digests are computed from its bytes, as a worker does")
	fl.IntVar(&blockTokens, "block-tokens", 0, "with --file: tokens per cached block of the workers (default 16)")
	fl.StringVar(&kvQuant, "kv-quant", "none", "with --file: how the workers cache K/V, none or int8")
	fl.StringVar(&req.Weights, "weights", "", "weights `digest`, 64 hex digits")
	fl.StringVar(&req.Layout, "layout", "", "layout `digest`, 64 hex digits")
	fl.StringVar(&req.Declared, "declared", "", "`words` for weights whose bytes cannot be read; equal words promise equal weights")
	fl.StringVar(&req.Label, "label", "", "`name` for people (default: the file's, or the first digits of the digest)")
	fl.BoolVar(&req.Activate, "activate", false, "make these weights active, and revoke others")
	fl.BoolVar(&req.Keep, "keep", false, "with --activate: leave others active")
	return cmd
}

func identityOf(file string, blockTokens int, q block.Quant) (block.Identity, error) {
	m, err := llama.Open(file, llama.Options{BlockTokens: blockTokens})
	if err != nil {
		return block.Identity{}, err
	}
	return quant.Identity(m.Identity(), q), m.Close()
}

// purge makes entries unreachable: the model's, a version's or a tenant's.
func (f *modelFlags) purge() *cobra.Command {
	var tenant, secret string
	var unsalted bool
	var cmd *cobra.Command
	cmd = f.change("purge MODEL [VERSION]", "Make all entries of the model, of a version or of a tenant unreachable", cobra.RangeArgs(1, 2),
		func(ctx context.Context, c *coordinator.Client, a []string) (coordinator.Result, error) {
			version, byTenant := coordinator.AllVersions, cmd.Flags().Changed("tenant")
			if len(a) > 1 {
				version = a[1]
			}
			switch {
			case version == "":
				return coordinator.Result{}, usagef("VERSION is empty: name it, or leave it out to purge the whole model")
			case byTenant && tenant == "":
				return coordinator.Result{}, usagef("--tenant is empty: name its cache_salt; --unsalted is for what was stored without one")
			case byTenant && unsalted:
				return coordinator.Result{}, usagef("--tenant and --unsalted name two tenants: leave one out")
			case !byTenant && !unsalted:
				return c.Purge(ctx, a[0], version)
			case len(a) > 1:
				return coordinator.Result{}, usagef("a tenant is purged in all versions: leave out %q", version)
			}
			return c.PurgeTenant(ctx, a[0], block.Namespace([]byte(secret), tenant))
		})
	cmd.Flags().StringVar(&tenant, "tenant", "", "cache `salt` of one tenant: only its entries, in every version; the salt itself is not sent")
	_ = cmd.Flags().SetAnnotation("tenant", narrows, []string{"purge"})
	cmd.Flags().BoolVar(&unsalted, "unsalted", false, "only what was stored for requests without a cache_salt, in every version")
	cmd.Flags().StringVar(&secret, "secret", "", "with --tenant or --unsalted: the cluster secret, if the workers have one")
	return cmd
}

func (f *modelFlags) list() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List models", Args: args(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		defer c.Close()
		names, err := c.Models(cmd.Context())
		if err != nil {
			return refused(err)
		}
		if f.asJSON {
			return printJSON(cmd.OutOrStdout(), names)
		}
		for _, n := range names {
			fmt.Fprintln(cmd.OutOrStdout(), n)
		}
		return nil
	}}
}

func (f *modelFlags) history() *cobra.Command {
	return &cobra.Command{Use: "history MODEL", Short: "Show the last changes of a model: what, when, by whom", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			defer c.Close()
			changes, err := c.History(cmd.Context(), a[0])
			if err != nil {
				return refused(err)
			}
			if f.asJSON {
				return printJSON(cmd.OutOrStdout(), changes)
			}
			t := newTable("generation", "time", "change", "of", "by")
			for _, h := range changes {
				of := h.Version
				if len(of) == 2*len(block.Digest{}) {
					of = of[:12]
				}
				t.row(fmt.Sprint(h.Gen), when(h.At), h.What, of, h.Who)
			}
			return t.print(cmd.OutOrStdout())
		}}
}
