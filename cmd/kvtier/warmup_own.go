package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/warmup"
	"github.com/kvtier/kvtier/worker/llama"
)

// ownWorker is a worker in this process that serves nobody: it computes for weights that nobody serves yet.
type ownWorker struct {
	node   *node
	client *coordinator.Client // nil without a coordinator
	model  string
	label  string
}

// grantTimeout is how long to wait until the coordinator's permission has arrived.
const grantTimeout = 30 * time.Second

// ownCrew starts a worker of our own and has its weights admitted for warming: they get an epoch, and no worker swaps to them.
func (f *warmupFlags) ownCrew(ctx context.Context) (_ *crew, err error) {
	o := nodeOptions{
		model: f.model, redis: f.redis, controlRedis: f.controlRedis, secret: []byte(f.secret), onExpiry: coordinator.Strict,
		writePolicy: tiered.WriteThrough, ttl: f.ttl, fetchTimeout: time.Second, sequences: f.concurrency,
		checkpoints: fileCheckpoints([]string{f.checkpoint}, llama.Options{BlockTokens: f.blockTokens}), address: "warmup",
		logger: slog.New(slog.DiscardHandler),
	}
	own := &ownWorker{model: f.model, label: labelOf(f.checkpoint)}
	if f.coordinatorURL != "" {
		if own.client, err = coordinator.NewClient(coordinator.ClientOptions{URL: f.coordinatorURL, Token: f.coordinatorToken, Actor: "warmup"}); err != nil {
			return nil, usageError{err}
		}
		o.coordinator = own.client
	}
	if own.node, err = startNode(ctx, o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, own.Close())
		}
	}()
	if err := own.admit(ctx); err != nil {
		return nil, err
	}
	e, _ := own.node.replica.Resident()
	return &crew{
		workers: []warmup.Worker{&warmup.Local{Replica: own.node.replica, Variant: e.Identity().Variant(), Label: own.label}},
		info:    own.node.replica.WarmInfo(f.model), tokenizer: e.Tokenizer(), own: own,
	}, nil
}

// admit asks for permission to store and waits until it is there.
func (o *ownWorker) admit(ctx context.Context) error {
	if o.client == nil {
		return nil
	}
	e, _ := o.node.replica.Resident()
	if _, err := o.client.Register(ctx, o.model, e.Identity(), o.label); err != nil {
		return fmt.Errorf("register %s: %w", o.label, err)
	}
	if _, err := o.client.Warm(ctx, o.model, e.Identity().Variant().String()); err != nil {
		return fmt.Errorf("warm %s: %w", o.label, err)
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	for !o.node.replica.WarmInfo("").Shared {
		select {
		case <-o.node.watch.Changed():
			o.node.replica.Refresh()
		case <-time.After(refreshGrant):
		case <-ctx.Done():
			return fmt.Errorf("no permission to store for %s arrived within %v: %s", o.label, grantTimeout, o.node.watch.View().Problem)
		}
	}
	return nil
}

const refreshGrant = 100 * time.Millisecond

// watch stops the job at once when the weights lose their grant.
func (o *ownWorker) watch(ctx context.Context, stop context.CancelCauseFunc) {
	if o.client == nil {
		return
	}
	e, _ := o.node.replica.Resident()
	for {
		changed := o.node.watch.Changed()
		if _, ok := o.node.watch.View().Grant(e.Identity().Variant()); !ok {
			stop(fmt.Errorf("%w: %s was revoked", warmup.ErrStop, o.label))
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// activate makes the weights active.
func (o *ownWorker) activate(ctx context.Context, out io.Writer) error {
	e, _ := o.node.replica.Resident()
	res, err := o.client.Activate(ctx, o.model, e.Identity().Weights.String(), false)
	if err != nil {
		return fmt.Errorf("everything is stored, but not activated: %w", err)
	}
	fmt.Fprintf(out, "%s is active since generation %d of %s\n", o.label, res.Gen, res.Model)
	return nil
}

// Close ends the worker.
func (o *ownWorker) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := o.node.Close(ctx)
	if o.client != nil {
		o.client.Close()
	}
	return err
}
