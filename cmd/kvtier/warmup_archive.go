package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker"
)

// archiveFlags are those of export and import.
type archiveFlags struct {
	worker, token, redis string
	asJSON               bool
}

func (f *archiveFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.worker, "worker", "http://127.0.0.1:8080", "base `URL` of a worker: it knows names and epoch")
	cmd.Flags().StringVar(&f.token, "token", "", "bearer token of the worker")
	cmd.Flags().StringVar(&f.redis, "redis", "redis://127.0.0.1:6379", "`URL` of the shared tier")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object at the end")
}

// open connects to worker and Redis.
func (f *archiveFlags) open(ctx context.Context) (*warmup.Remote, worker.WarmInfo, *redisstore.Store, error) {
	r, err := warmup.NewRemote(f.worker, f.token)
	if err != nil {
		return nil, worker.WarmInfo{}, nil, usagef("--worker: %w", err)
	}
	s, err := redisstore.Open(redisstore.Options{URL: f.redis, Role: "warmup"})
	if err != nil {
		return nil, worker.WarmInfo{}, nil, usageError{err}
	}
	ask, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := r.Info(ask)
	if err == nil && !info.Shared {
		err = fmt.Errorf("%w: %s may not use the remote tier now: look at its /readyz", warmup.ErrWorker, f.worker)
	}
	if err != nil {
		return nil, info, nil, errors.Join(err, s.Close())
	}
	r.Expect(info.Variant)
	return r, info, s, nil
}

func (f *archiveFlags) print(w io.Writer, what string, t warmup.Transfer) error {
	if f.asJSON {
		return printJSON(w, t)
	}
	_, err := fmt.Fprintf(w, "%s %s blocks in %s values, %s, in %.1f s\n", what, humanize.Comma(t.Blocks-t.Missing), humanize.Comma(t.Frames), humanize.IBytes(uint64(t.Bytes)), t.Seconds)
	return err
}

func newWarmupExport() *cobra.Command {
	var f archiveFlags
	var out, salt string
	var whole bool
	cmd := &cobra.Command{
		Use:   "export MANIFEST...",
		Short: "Write what the tier has of manifests to a file",
		Long: `export copies the stored K/V of the manifests' prompts into one file, from which import fills another Redis without computing anything. The
file belongs to these weights and to this cluster's secret.`,
		Example: "  kvtier warmup export manifest.jsonl --out warm.kvt --redis redis://127.0.0.1:6379 --worker http://127.0.0.1:8081",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if out == "" {
				return usagef("--out is missing: name the file to write")
			}
			source, cleanup, err := warmup.OpenSource(a, whole, cmd.InOrStdin())
			defer cleanup()
			if err != nil {
				return usageError{err}
			}
			source.Salt = salt
			return f.export(cmd, source, out)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "`file` to write; it is replaced when everything is in it")
	cmd.Flags().StringVar(&salt, "cache-salt", "", "tenant of prompts that name none")
	cmd.Flags().BoolVar(&whole, "whole-files", false, "a file that is not JSONL is one prompt, not one per line")
	return cmd
}

func (f *archiveFlags) export(cmd *cobra.Command, source warmup.Source, path string) (err error) {
	ctx := cmd.Context()
	r, info, s, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	screen := newWarmupScreen(cmd.ErrOrStderr(), f.asJSON)
	plan, err := warmup.NewPlan(ctx, warmup.PlanOptions{
		Source: source, Encoder: &warmup.RemoteEncoder{Workers: []*warmup.Remote{r}}, BlockTokens: info.BlockTokens,
		ContextTokens: info.ContextTokens, Broken: screen.broken, Progress: screen.planning,
	})
	if err != nil {
		return err
	}
	defer plan.Close()
	file, err := os.CreateTemp(filepath.Dir(path), ".kvtier-*.part")
	if err != nil {
		return usageError{err}
	}
	defer os.Remove(file.Name()) // nothing to remove once it is renamed
	w := bufio.NewWriterSize(file, 1<<20)
	bar := newProgress(cmd.ErrOrStderr(), "exporting", int(plan.Stats.UniqueBlocks))
	before := int64(0)
	t, err := plan.Export(ctx, r, s, info, w, func(t warmup.Transfer) {
		bar.add(int(t.Blocks - before))
		before = t.Blocks
	})
	bar.done()
	if err = errors.Join(err, w.Flush(), file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	if err := f.print(cmd.OutOrStdout(), "exported", t); err != nil {
		return err
	}
	if t.Missing > 0 {
		return fmt.Errorf("%d of %d blocks are not stored: kvtier warmup run first", t.Missing, t.Blocks)
	}
	return nil
}

func newWarmupImport() *cobra.Command {
	var f archiveFlags
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Fill the tier from a file that export has written",
		Long: `import verifies the whole file, and every value in it, and stores the values for the epoch that the worker's weights have now. A file of
other weights, another layout or another cluster secret is refused. From standard input (-) the checksum of the whole is
known only at the end; each value is verified before it is stored all the same.`,
		Example: "  kvtier warmup import warm.kvt --redis redis://127.0.0.1:6379 --worker http://127.0.0.1:8081",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			if ttl <= 0 {
				return usagef("--ttl has to be positive")
			}
			return f.load(cmd, a[0], ttl)
		},
	}
	f.add(cmd)
	cmd.Flags().DurationVar(&ttl, "ttl", 6*time.Hour, "how long stored entries live")
	return cmd
}

func (f *archiveFlags) load(cmd *cobra.Command, path string, ttl time.Duration) error {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return usageError{err}
		}
		defer file.Close()
		if err := verifyArchive(file); err != nil {
			return usageError{fmt.Errorf("%s: %w", path, err)}
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		in = file
	}
	a, err := warmup.NewArchiveReader(bufio.NewReaderSize(in, 1<<20))
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", path, err)}
	}
	r, info, s, err := f.open(cmd.Context())
	if err != nil {
		return err
	}
	defer s.Close()
	lines := time.Now().Add(lineEvery)
	t, err := warmup.Import(cmd.Context(), a, s, info, ttl, func(t warmup.Transfer) {
		if time.Now().After(lines) {
			fmt.Fprintf(cmd.ErrOrStderr(), "importing: %s blocks, %s\n", humanize.Comma(t.Blocks), humanize.IBytes(uint64(t.Bytes)))
			lines = time.Now().Add(lineEvery)
		}
	})
	if errors.Is(err, warmup.ErrOther) || errors.Is(err, warmup.ErrArchive) {
		err = usageError{fmt.Errorf("%s: %w", path, err)}
	}
	if err != nil {
		return err
	}
	if err := f.print(cmd.OutOrStdout(), "imported", t); err != nil {
		return err
	}
	now, err := r.Info(cmd.Context())
	if err == nil && now.Epoch != info.Epoch {
		err = fmt.Errorf("%s was purged meanwhile: what was imported is not reachable, import again", info.Label)
	}
	return err
}

// verifyArchive reads a file to its end.
func verifyArchive(r io.Reader) error {
	a, err := warmup.NewArchiveReader(bufio.NewReaderSize(r, 1<<20))
	for err == nil {
		_, err = a.Next()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
