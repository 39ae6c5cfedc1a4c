package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/warmup"
)

// coordinatorFlag are the flags of commands that ask a coordinator.
type coordinatorFlag struct {
	url, token string
	asJSON     bool
}

func (f *coordinatorFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.url, "coordinator", "http://127.0.0.1:8090", "`URL` of the coordinator")
	cmd.Flags().StringVar(&f.token, "token", "", "bearer token of the coordinator")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
}

func (f *coordinatorFlag) client() (*coordinator.Client, error) {
	c, err := coordinator.NewClient(coordinator.ClientOptions{URL: f.url, Token: f.token, Actor: os.Getenv("USER")})
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// ask makes a command that does one thing on a coordinator.
func (f *coordinatorFlag) ask(use, short string, check cobra.PositionalArgs, do func(*cobra.Command, *coordinator.Client, []string) error) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args(check), RunE: func(cmd *cobra.Command, a []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		defer c.Close()
		return do(cmd, c, a)
	}}
	f.add(cmd)
	return cmd
}

// newWarmupJobs are the subcommands about jobs that a coordinator carries out.
func newWarmupJobs() []*cobra.Command {
	steer := func(action, short string) *cobra.Command {
		f := &coordinatorFlag{}
		return f.ask(action+" ID", short, cobra.ExactArgs(1), func(cmd *cobra.Command, c *coordinator.Client, a []string) error {
			j, err := c.SteerWarmup(cmd.Context(), a[0], action)
			if err != nil {
				return refused(err)
			}
			return f.print(cmd.OutOrStdout(), j)
		})
	}
	return []*cobra.Command{newWarmupSubmit(), newWarmupStatus(), newWarmupList(),
		steer("pause", "Hand out nothing more of a job until it is resumed"),
		steer("resume", "Go on with a job that was paused"),
		steer("cancel", "End a job; what was stored stays")}
}

func newWarmupSubmit() *cobra.Command {
	f := &coordinatorFlag{}
	var q coordinator.WarmupRequest
	var whole, wait bool
	var bytesPerS, budget byteSize
	cmd := f.ask("submit MANIFEST...", "Leave a warm-up to the coordinator", cobra.MinimumNArgs(1),
		func(cmd *cobra.Command, c *coordinator.Client, a []string) error {
			source, cleanup, err := warmup.OpenSource(a, whole, cmd.InOrStdin())
			defer cleanup()
			if err != nil {
				return usageError{err}
			}
			if q.Manifest, err = manifestText(source); err != nil {
				return usageError{err}
			}
			q.BytesPerS, q.BudgetBytes = float64(bytesPerS), int64(budget)
			j, err := c.AddWarmup(cmd.Context(), q)
			if err != nil {
				return refused(err)
			}
			if wait {
				if j, err = awaitJob(cmd.Context(), c, j, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			if err := f.print(cmd.OutOrStdout(), j); err != nil {
				return err
			}
			return failedJob(j)
		})
	cmd.Example = "  kvtier warmup submit manifest.jsonl --model shakespeare --tokens-per-s 500 --wait"
	fl := cmd.Flags()
	fl.StringVar(&q.Model, "model", "shakespeare", "`name` of the model; its active version is warmed")
	fl.StringVar(&q.CacheSalt, "cache-salt", "", "tenant of prompts that name none")
	fl.BoolVar(&q.Strict, "strict", false, "fail at the first broken line")
	fl.BoolVar(&whole, "whole-files", false, "a file that is not JSONL is one prompt, not one per line")
	fl.Float64Var(&q.TokensPerS, "tokens-per-s", 0, "bound on computed tokens per second; 0 for none")
	fl.Var(&bytesPerS, "bytes-per-s", "bound on stored bytes per second; 0 for none")
	fl.Var(&budget, "budget", "bytes to store at most; 0 for no bound")
	fl.BoolVar(&wait, "wait", false, "wait until the job has ended, and show how far it is")
	return cmd
}

// awaitJob follows a job to its end.
func awaitJob(ctx context.Context, c *coordinator.Client, j coordinator.Job, out io.Writer) (coordinator.Job, error) {
	next := time.Now().Add(lineEvery)
	for !j.State.Ended() {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return j, ctx.Err()
		}
		now, err := c.Warmup(ctx, j.ID)
		if err != nil {
			return j, refused(err)
		}
		j = now
		if time.Now().After(next) {
			fmt.Fprintf(out, "warm-up %s: %s, %s\n", j.ID, j.State, jobProgress(j))
			next = time.Now().Add(lineEvery)
		}
	}
	return j, nil
}

func failedJob(j coordinator.Job) error {
	if j.State == coordinator.JobFailed {
		return fmt.Errorf("warm-up %s failed: %s", j.ID, j.Error)
	}
	return nil
}

func newWarmupStatus() *cobra.Command {
	f := &coordinatorFlag{}
	return f.ask("status ID", "Show how a job fares", cobra.ExactArgs(1), func(cmd *cobra.Command, c *coordinator.Client, a []string) error {
		j, err := c.Warmup(cmd.Context(), a[0])
		if err != nil {
			return refused(err)
		}
		return f.print(cmd.OutOrStdout(), j)
	})
}

func newWarmupList() *cobra.Command {
	f := &coordinatorFlag{}
	return f.ask("list", "List the jobs that the coordinator knows", cobra.NoArgs, func(cmd *cobra.Command, c *coordinator.Client, _ []string) error {
		jobs, err := c.Warmups(cmd.Context())
		if err != nil {
			return refused(err)
		}
		if f.asJSON {
			return printJSON(cmd.OutOrStdout(), jobs)
		}
		return printJobs(cmd.OutOrStdout(), jobs)
	})
}

func (f *coordinatorFlag) print(w io.Writer, j coordinator.Job) error {
	if f.asJSON {
		return printJSON(w, j)
	}
	return printJobs(w, []coordinator.Job{j})
}

func jobProgress(j coordinator.Job) string {
	var r warmup.Report
	if len(j.Report) == 0 || json.Unmarshal(j.Report, &r) != nil {
		return "-"
	}
	return fmt.Sprintf("%d of %d prompts, %s tokens, %s", r.DoneItems, r.Items, humanize.Comma(r.ComputedTokens), humanize.IBytes(uint64(r.BytesStored)))
}

func printJobs(w io.Writer, jobs []coordinator.Job) error {
	t := newTable("warm-up", "model", "variant", "state", "done", "by", "since")
	for _, j := range jobs {
		state := string(j.State)
		if !j.State.Ended() && j.Want != coordinator.JobRunning && j.Want != j.State {
			state += ", to be " + string(j.Want)
		}
		t.row(j.ID, j.Spec.Model, j.Variant.String(), state, jobProgress(j), j.Who, time.UnixMilli(j.Created).Format(time.DateTime))
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Error != "" {
			fmt.Fprintf(w, "%s: %s\n", j.ID, strings.ReplaceAll(j.Error, "\n", "; "))
		}
	}
	return nil
}
