package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

const (
	settingsEvery   = time.Minute // while all is well
	settingsAgain   = time.Second // while something is wrong
	settingsTimeout = 5 * time.Second
	// trialKey is written and deleted to learn whether that is allowed. It is no name of a block.
	trialKey = "kvt1:d:trial"
)

// settingsWatch looks at Redis' settings, at the start and again and again: the breaker says that Redis does not work, this says why. What is
// unwise is logged once; what makes a server unfit also when it ends, and until then it stands in problems. Nothing of it stops anybody:
// Redis may be mended while kvtier runs.
type settingsWatch struct {
	log  *slog.Logger
	mu   sync.Mutex
	now  map[string]string // what is wrong, by server
	wg   sync.WaitGroup
	stop context.CancelFunc
}

// server is one that is looked at.
type server struct {
	name, url string
	// data is whether blocks are kept there. The advice for data does not hold for a server of control records alone.
	data bool
	// writes says that this process stores blocks, and so has to be allowed to.
	writes bool
}

// servers lists the server of data, and the one of control records if it is another.
func servers(data, control string, writes bool) []server {
	var all []server
	if data != "" {
		all = append(all, server{"redis", data, true, writes})
	}
	if control != "" && control != data {
		all = append(all, server{"control redis", control, false, false})
	}
	return all
}

func watchSettings(log *slog.Logger, all []server) *settingsWatch {
	ctx, stop := context.WithCancel(context.Background())
	w := &settingsWatch{log: log, now: map[string]string{}, stop: stop}
	for _, s := range all {
		w.wg.Go(func() { w.follow(ctx, s) })
	}
	return w
}

func (w *settingsWatch) Close() {
	w.stop()
	w.wg.Wait()
}

// problems are what makes a server unfit, in sentences.
func (w *settingsWatch) problems() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, name := range slices.Sorted(maps.Keys(w.now)) {
		all = append(all, name+": "+w.now[name])
	}
	return all
}

func (w *settingsWatch) follow(ctx context.Context, s server) {
	warned := map[string]bool{}
	for {
		warnings, err := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		for _, text := range warnings {
			if !warned[text] {
				w.log.Warn("redis setting", "server", s.name, "warning", text)
			}
			warned[text] = true
		}
		w.found(s.name, err)
		pause := settingsEvery
		if err != nil {
			pause = settingsAgain
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (w *settingsWatch) found(name string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.now[name]
	switch {
	case err == nil && before != "":
		w.log.Info("redis usable again", "server", name)
		delete(w.now, name)
	case err != nil:
		if before == "" {
			w.log.Warn("redis unusable", "server", name, "err", err)
		}
		w.now[name] = err.Error()
	}
}

// look asks the server once.
func (s server) look(ctx context.Context) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, settingsTimeout)
	defer cancel()
	r, err := redisstore.Open(redisstore.Options{URL: s.url, Role: "check", PoolSize: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	report, err := r.Check(ctx)
	if s.data {
		warnings = report.Warnings
	}
	if err == nil && s.writes {
		err = try(ctx, r)
	}
	return warnings, err
}

// try does what a worker does, so that an access list that is too tight is named before a block is lost to it. A full server is none.
func try(ctx context.Context, r *redisstore.Store) error {
	keys := []string{trialKey}
	put := r.Put(ctx, []store.Item{{Key: trialKey, Value: []byte("trial")}}, time.Second)
	if errors.Is(put, store.ErrFull) {
		put = nil
	}
	_, lead := r.Lead(ctx, keys)
	var get error
	for _, err := range r.Get(ctx, keys, [][]byte{make([]byte, 64)}) {
		if !errors.Is(err, store.ErrNotFound) {
			get = errors.Join(get, err)
		}
	}
	_, del := r.Delete(ctx, keys)
	return cmp.Or(put, lead, get, del) // one line says enough
}
