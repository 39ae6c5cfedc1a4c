package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker/engine"
)

// Errors of loading weights.
var (
	// ErrCheckpoint means that there is no checkpoint of that name among those that the worker may load.
	ErrCheckpoint = errors.New("worker: no such checkpoint")
	// ErrChanged means that a checkpoint's bytes are not those that it was announced with.
	ErrChanged = errors.New("worker: the checkpoint has changed since it was announced")
)

// Loaded is the answer to loading a checkpoint.
type Loaded struct {
	Label   string `json:"label"`
	Weights string `json:"weights"`
	Variant string `json:"variant"`
	// Resident says that requests are answered by these weights now. With a coordinator that takes their activation.
	Resident bool `json:"resident"`
	// State is what the control record says of them, "" without a coordinator.
	State string `json:"state,omitempty"`
}

// Verified returns c with an Open that refuses, with ErrChanged, an engine of any other identity than c's: a file may have been replaced
// since it was announced, or its noted digest may be wrong.
func (c Checkpoint) Verified() Checkpoint {
	open := c.Open
	c.Open = func(ctx context.Context) (engine.Engine, error) {
		e, err := open(ctx)
		if err != nil {
			return nil, err
		}
		if got := e.Identity(); got != c.Identity {
			return nil, errors.Join(fmt.Errorf("%w: %s has weights %s, announced were %s", ErrChanged, c.Label, got.Weights.Short(), c.Identity.Weights.Short()), e.Close())
		}
		return e, nil
	}
	return c
}

// Offer adds a checkpoint to those that Follow may swap to, in place of one of the same label.
func (r *Replica) Offer(c Checkpoint) {
	r.Withdraw(c.Label)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.offered = append(r.mu.offered, c)
}

// Withdraw takes back an offer.
func (r *Replica) Withdraw(label string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make([]Checkpoint, 0, len(r.mu.offered)+1) // Step reads the old one without the lock
	for _, c := range r.mu.offered {
		if c.Label != label {
			kept = append(kept, c)
		}
	}
	r.mu.offered = kept
}

// loadable is what Follow was given and what was offered since.
func (r *Replica) loadable(own []Checkpoint) []Checkpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(own[:len(own):len(own)], r.mu.offered...)
}

type loadRequest struct {
	Checkpoint string `json:"checkpoint"`
}

// load answers POST /v1/weights.
func (a *api) load(w http.ResponseWriter, r *http.Request) {
	if a.opts.Load == nil {
		httpapi.WriteError(w, &httpapi.Error{Status: http.StatusNotImplemented, Type: httpapi.TypeInvalidRequest, Code: "loading_disabled",
			Message: "this worker loads nothing by request: start it with --checkpoint or --checkpoint-dir"})
		return
	}
	var body loadRequest
	if err := httpapi.ReadJSON(w, r, maxBody, &body); err != nil {
		httpapi.WriteError(w, err)
		return
	}
	if body.Checkpoint == "" {
		httpapi.WriteError(w, httpapi.BadRequest("missing_field", "checkpoint", "checkpoint is missing: name a file"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.RequestTimeout)
	defer cancel()
	loaded, err := a.opts.Load(ctx, body.Checkpoint)
	switch {
	case err == nil:
		httpapi.WriteJSON(w, http.StatusOK, loaded)
		return
	case errors.Is(err, ErrCheckpoint):
		err = &httpapi.Error{Status: http.StatusNotFound, Type: httpapi.TypeInvalidRequest, Code: "checkpoint_not_found", Param: "checkpoint", Message: err.Error()}
	case errors.Is(err, ErrShape), errors.Is(err, ErrChanged):
		err = &httpapi.Error{Status: http.StatusConflict, Type: httpapi.TypeInvalidRequest, Code: "checkpoint_unusable", Param: "checkpoint", Message: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		err = &httpapi.Error{Status: http.StatusGatewayTimeout, Type: httpapi.TypeServer, Code: "timeout", Message: "loading took too long: the weights before are still served"}
	}
	httpapi.WriteError(w, err)
}
