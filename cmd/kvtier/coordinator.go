package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/store/redisstore"
)

type coordinatorFlags struct {
	listenFlags
	redis, controlRedis string
	lease               time.Duration
	noAutoActivate      bool
	state               string
	workerToken         string
	pinQuota            byteSize
}

func newCoordinator() *cobra.Command {
	f := coordinatorFlags{pinQuota: coordinator.DefaultPinQuota}
	cmd := &cobra.Command{
		Use:   "coordinator",
		Short: "Own the versions of models and invalidate entries when weights change",
		Long: `coordinator keeps, in Redis, which versions of a model are active and in which epoch. Activating or purging raises the epoch, which makes
older entries unreachable at once; their memory is reclaimed in the background. Several may run: all answer requests, the one that holds the
lease reconciles and reclaims. Workers go on without any.

With --state it keeps what it wants to stand in Redis in a file as well, each coordinator in one of its own: revoked versions stay revoked
even if Redis is flushed or restored from a backup while every coordinator is down.`,
		Example: `  kvtier coordinator --redis redis://127.0.0.1:6379
  kvtier coordinator --redis redis://127.0.0.1:6379 --state /var/lib/kvtier/state.json`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context()) },
	}
	f.add(cmd, "127.0.0.1:8090")
	fl := cmd.Flags()
	fl.StringVar(&f.redis, "redis", "redis://127.0.0.1:6379", "`URL` of the shared tier, for reclaim")
	fl.StringVar(&f.controlRedis, "control-redis", "", "`URL` of the server with the control records (default: --redis)")
	fl.DurationVar(&f.lease, "lease", coordinator.DefaultLease, "how long workers trust a record they have read")
	fl.StringVar(&f.state, "state", "", "`file` that keeps the desired records; written before Redis is")
	fl.BoolVar(&f.noAutoActivate, "no-auto-activate", false, "do not activate the first version of a new model")
	fl.StringVar(&f.workerToken, "worker-token", "", "bearer token of the workers, for warm-ups and pins")
	fl.Var(&f.pinQuota, "pin-quota", "prompts that one tenant may pin, together")
	return cmd
}

func (f *coordinatorFlags) run(ctx context.Context) error {
	if err := httpapi.ValidateListen(f.listen, f.token, f.insecure); err != nil {
		return usageError{err}
	}
	log := f.logger()
	c, err := startCoordinator(coordinatorOptions{
		redis: f.redis, controlRedis: f.controlRedis, lease: f.lease, noAutoActivate: f.noAutoActivate, state: f.state, logger: log,
		workerToken: f.workerToken, pinQuota: int(f.pinQuota),
	})
	if err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return errors.Join(usagef("--listen: %w", err), c.Close())
	}
	settings := watchSettings(log, servers(f.redis, f.controlRedis, false))
	defer settings.Close()
	log.Info("serving", "listen", ln.Addr().String(), "redis", redisstore.Redact(f.redis))
	return errors.Join(httpapi.Serve(ctx, ln, c.Handler(f.token), drainTimeout), c.Close())
}

type coordinatorOptions struct {
	redis, controlRedis string
	lease, reconcile    time.Duration // 0 for the defaults
	noAutoActivate      bool
	state               string // file of desired state, "" for none
	workerToken         string // for warm-ups
	pinQuota            int    // 0 for the default
	logger              *slog.Logger
}

// runningCoordinator is a coordinator with its connections.
type runningCoordinator struct {
	*coordinator.Coordinator
	control *coordinator.Control
	close   []func() error
}

func startCoordinator(o coordinatorOptions) (*runningCoordinator, error) {
	data, err := redisstore.Open(redisstore.Options{URL: o.redis, Role: "coordinator"})
	if err != nil {
		return nil, usageError{fmt.Errorf("--redis: %w", err)}
	}
	url := o.controlRedis
	if url == "" {
		url = o.redis
	}
	rdb, err := redisstore.Connect(redisstore.Options{URL: url, Role: "control", PoolSize: 4})
	if err != nil {
		return nil, errors.Join(usageError{fmt.Errorf("--control-redis: %w", err)}, data.Close())
	}
	r := &runningCoordinator{control: coordinator.NewControl(rdb)}
	r.Coordinator, err = coordinator.New(coordinator.Options{
		Control: r.control, Store: data, Lease: o.lease, Reconcile: o.reconcile, NoAutoActivate: o.noAutoActivate, StateFile: o.state,
		Warmer: fleetWarmer{o.workerToken}, PinQuota: o.pinQuota,
		Logger: o.logger,
	})
	if err != nil {
		return nil, errors.Join(usageError{err}, rdb.Close(), data.Close())
	}
	r.close = []func() error{r.Coordinator.Close, rdb.Close, data.Close}
	r.Start()
	return r, nil
}

func (r *runningCoordinator) Close() error {
	var errs []error
	for _, f := range r.close {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}
