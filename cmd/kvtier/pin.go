package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/warmup"
)

func newPin() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pin",
		Short: "Keep the K/V of prompts, whatever is evicted",
		Long: `A pinned prompt's K/V has no TTL, so that a Redis with one of the volatile policies never evicts it, and the coordinator has it computed
again when it is lost all the same, or when other weights become active. The prompt itself is kept in the control Redis. Each
tenant has a quota (kvtier coordinator --pin-quota).`,
		Example: `  kvtier pin add --prompt "You are a helpful player." --id system
  kvtier pin add prefaces.jsonl --model shakespeare
  kvtier pin list
  kvtier pin remove system`,
	}
	group(cmd)
	cmd.AddCommand(newPinAdd(), newPinList(), newPinRemove())
	return cmd
}

func newPinAdd() *cobra.Command {
	f := &coordinatorFlag{}
	var model, prompt, id, salt string
	var whole bool
	cmd := f.ask("add [MANIFEST...]", "Pin the prompts of manifests, or the one of --prompt", cobra.ArbitraryArgs,
		func(cmd *cobra.Command, c *coordinator.Client, a []string) error {
			var asked []coordinator.PinRequest
			switch {
			case (prompt == "") == (len(a) == 0):
				return usagef("give either manifests or --prompt")
			case prompt != "":
				asked = []coordinator.PinRequest{{ID: id, Prompt: prompt, CacheSalt: salt}}
			case id != "":
				return usagef("--id goes with --prompt; a manifest's lines have ids of their own")
			default:
				source, cleanup, err := warmup.OpenSource(a, whole, cmd.InOrStdin())
				defer cleanup()
				if err != nil {
					return usageError{err}
				}
				source.Salt = salt
				for it, err := range source.Items() {
					if err != nil {
						return usageError{err}
					}
					asked = append(asked, coordinator.PinRequest{ID: it.ID, Prompt: it.Prompt, Tokens: it.Tokens, CacheSalt: it.Salt})
				}
			}
			var pins []coordinator.Pin
			for _, q := range asked {
				p, err := c.AddPin(cmd.Context(), model, q)
				if err != nil {
					return fmt.Errorf("after %d of %d pins: %w", len(pins), len(asked), refused(err))
				}
				pins = append(pins, p)
			}
			return f.printPins(cmd.OutOrStdout(), coordinator.PinList{Pins: pins})
		})
	fl := cmd.Flags()
	fl.StringVar(&model, "model", "shakespeare", "`name` of the model")
	fl.StringVar(&prompt, "prompt", "", "the prompt to pin")
	fl.StringVar(&id, "id", "", "with --prompt: `name` of the pin (default: a digest)")
	fl.StringVar(&salt, "cache-salt", "", "tenant of prompts that name none")
	fl.BoolVar(&whole, "whole-files", false, "a file that is not JSONL is one prompt, not one per line")
	return cmd
}

func newPinList() *cobra.Command {
	f := &coordinatorFlag{}
	var model string
	cmd := f.ask("list", "List the pins of a model", cobra.NoArgs, func(cmd *cobra.Command, c *coordinator.Client, _ []string) error {
		l, err := c.Pins(cmd.Context(), model)
		if err != nil {
			return refused(err)
		}
		return f.printPins(cmd.OutOrStdout(), l)
	})
	cmd.Flags().StringVar(&model, "model", "shakespeare", "`name` of the model")
	return cmd
}

func newPinRemove() *cobra.Command {
	f := &coordinatorFlag{}
	var model string
	cmd := f.ask("remove ID...", "Let pinned prompts expire again", cobra.MinimumNArgs(1), func(cmd *cobra.Command, c *coordinator.Client, a []string) error {
		var pins []coordinator.Pin
		for _, id := range a {
			p, err := c.RemovePin(cmd.Context(), model, id)
			if err != nil {
				return refused(err)
			}
			pins = append(pins, p)
		}
		return f.printPins(cmd.OutOrStdout(), coordinator.PinList{Pins: pins})
	})
	cmd.Flags().StringVar(&model, "model", "shakespeare", "`name` of the model")
	return cmd
}

// maxShown is how much of a prompt a table shows.
const maxShown = 48

func (f *coordinatorFlag) printPins(w io.Writer, l coordinator.PinList) error {
	if f.asJSON {
		return printJSON(w, l)
	}
	t := newTable("pin", "prompt", "tenant", "by", "since")
	for _, p := range l.Pins {
		text := fmt.Sprintf("%.*q", maxShown, p.Prompt)
		if p.Tokens != nil {
			text = fmt.Sprintf("%d tokens", len(p.Tokens))
		}
		t.row(p.ID, text, p.CacheSalt, p.Who, time.UnixMilli(p.Created).Format(time.DateTime))
	}
	if err := t.print(w); err != nil {
		return err
	}
	if l.Problem != "" {
		fmt.Fprintln(w, "last round failed:", l.Problem)
	}
	return nil
}
