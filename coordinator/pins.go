package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi"
)

const (
	pinsPrefix = "kvt1:{ctl}:pins:" // hash of a model's pins by id

	maxPins     = 1024
	maxPinBytes = 256 << 10
	// DefaultPinQuota bounds the prompts that one tenant has pinned, in bytes.
	DefaultPinQuota = 256 << 10
	// DefaultPinRefresh is how often pins are looked after.
	DefaultPinRefresh = time.Minute
)

// ErrQuota means that a tenant has pinned as much as it may.
var ErrQuota = errors.New("coordinator: quota of pins used up")

// Pin is a prompt whose K/V shall stay: without a TTL, and computed again if it is lost, or if other weights become active.
type Pin struct {
	ID        string  `json:"id"`
	Prompt    string  `json:"prompt,omitempty"`
	Tokens    []int32 `json:"tokens,omitempty"` // instead of Prompt
	CacheSalt string  `json:"cache_salt,omitempty"`
	Who       string  `json:"who,omitempty"`
	Created   int64   `json:"created"` // unix ms
}

// PinRequest is the body of POST /v1/models/{name}/pins.
type PinRequest struct {
	ID        string  `json:"id,omitempty"` // default: a digest of the rest
	Prompt    string  `json:"prompt,omitempty"`
	Tokens    []int32 `json:"tokens,omitempty"`
	CacheSalt string  `json:"cache_salt,omitempty"`
}

// PinList is the answer to GET /v1/models/{name}/pins.
type PinList struct {
	Pins []Pin `json:"pins"`
	// Problem says why the last round of looking after them failed, as far as the coordinator that was asked knows.
	Problem string `json:"problem,omitempty"`
}

// cost is what a pin counts against its tenant's quota.
func (p Pin) cost() int { return len(p.Prompt) + 4*len(p.Tokens) }

func (q PinRequest) pin() (p Pin, err error) {
	p = Pin{ID: q.ID, Prompt: q.Prompt, Tokens: q.Tokens, CacheSalt: q.CacheSalt}
	if (q.Prompt == "") == (len(q.Tokens) == 0) {
		return p, fmt.Errorf("%w: pin: give either prompt or tokens", ErrInvalid)
	}
	if len(q.CacheSalt) > 256 || p.cost() > maxPinBytes || slices.ContainsFunc(q.Tokens, func(t int32) bool { return t < 0 }) {
		return p, fmt.Errorf("%w: pin: more than %d bytes, a longer cache_salt than 256, or a negative token", ErrInvalid, maxPinBytes)
	}
	if p.ID == "" {
		b, err := json.Marshal(p)
		if err != nil {
			return p, fmt.Errorf("%w: pin: %w", ErrInvalid, err)
		}
		p.ID = DeclaredWeights(string(b)).Short()
	}
	return p, validateName("the id of a pin", p.ID)
}

// Pins lists a model's pins, oldest first.
func (c *Control) pins(ctx context.Context, model string) ([]Pin, error) {
	all, err := c.rdb.HGetAll(ctx, pinsPrefix+model).Result()
	if err != nil {
		return nil, fmt.Errorf("coordinator: read pins of %s: %w", model, err)
	}
	pins := make([]Pin, 0, len(all))
	for id, raw := range all {
		var p Pin
		if len(raw) <= 2*maxPinBytes && json.Unmarshal([]byte(raw), &p) == nil && p.ID == id {
			pins = append(pins, p)
		}
	}
	slices.SortFunc(pins, func(a, b Pin) int { return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID)) })
	return pins, nil
}

// AddPin makes a pin known; the leader brings it about. A pin of the same name is replaced.
func (c *Coordinator) AddPin(ctx context.Context, model string, q PinRequest) (Pin, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	p, err := q.pin()
	if err != nil {
		return p, err
	}
	if c.opt.Warmer == nil {
		return p, fmt.Errorf("%w: this coordinator carries out no warm-ups, and so no pins", ErrInvalid)
	}
	if _, err := c.opt.Control.Load(ctx, model); err != nil {
		return p, err
	}
	pins, err := c.opt.Control.pins(ctx, model)
	if err != nil {
		return p, err
	}
	used := p.cost()
	for _, x := range pins {
		if x.CacheSalt == p.CacheSalt && x.ID != p.ID {
			used += x.cost()
		}
	}
	if used > c.opt.PinQuota || len(pins) >= maxPins {
		return p, fmt.Errorf("%w: with this one the tenant's pins have %d bytes of %d, and the model %d of at most %d pins", ErrQuota, used, c.opt.PinQuota, len(pins)+1, maxPins)
	}
	p.Who, p.Created = actorOf(ctx), millis(c.opt.Now())
	raw, err := json.Marshal(p)
	if err != nil {
		return p, fmt.Errorf("%w: pin: %w", ErrInvalid, err)
	}
	if err := c.opt.Control.rdb.HSet(ctx, pinsPrefix+model, p.ID, raw).Err(); err != nil {
		return p, fmt.Errorf("coordinator: pin: %w", err)
	}
	c.pinsChanged()
	return p, nil
}

// pinsChanged makes the leader look after pins now, if that is this coordinator.
func (c *Coordinator) pinsChanged() { poke(c.pinned) }

// RemovePin takes a pin back: what it held may be evicted again.
func (c *Coordinator) RemovePin(ctx context.Context, model, id string) (Pin, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	pins, err := c.opt.Control.pins(ctx, model)
	if err != nil {
		return Pin{}, err
	}
	i := slices.IndexFunc(pins, func(p Pin) bool { return p.ID == id })
	if i < 0 {
		return Pin{}, fmt.Errorf("%w: pin %.64q of %s", ErrNoJob, id, model)
	}
	if err := c.opt.Control.rdb.HDel(ctx, pinsPrefix+model, id).Err(); err != nil {
		return Pin{}, fmt.Errorf("coordinator: remove pin: %w", err)
	}
	// What another pin holds as well is pinned again by the next round.
	defer c.pinsChanged()
	if c.opt.Warmer == nil {
		return pins[i], nil
	}
	return pins[i], c.release(ctx, model, pins[i])
}

// release gives the blocks of a pin their TTL back, as far as a worker can be reached that serves them.
func (c *Coordinator) release(ctx context.Context, model string, p Pin) error {
	v, workers, err := c.active(ctx, model)
	if err != nil || len(workers) == 0 {
		return err
	}
	manifest, err := manifestOf([]Pin{p})
	if err != nil {
		return err
	}
	return c.opt.Warmer.Release(ctx, workers, v, manifest)
}

// active returns the variant activated last and the workers that serve it.
func (c *Coordinator) active(ctx context.Context, model string) (block.Variant, []string, error) {
	found, err := c.opt.Control.Load(ctx, model)
	if err != nil {
		return block.Variant{}, nil, err
	}
	for _, v := range found.Versions() {
		if v.State == Active {
			workers, err := c.workersOf(ctx, model, v.Variant)
			return v.Variant, workers, err
		}
	}
	return block.Variant{}, nil, nil
}

// manifestOf writes pins as a warm-up's manifest.
func manifestOf(pins []Pin) (string, error) {
	var out strings.Builder
	enc := json.NewEncoder(&out)
	for _, p := range pins {
		line := map[string]any{"id": p.ID, "pin": true}
		if p.Tokens != nil {
			line["tokens"] = p.Tokens
		} else {
			line["prompt"] = p.Prompt
		}
		if p.CacheSalt != "" {
			line["cache_salt"] = p.CacheSalt
		}
		if err := enc.Encode(line); err != nil {
			return "", fmt.Errorf("%w: pin %s: %w", ErrInvalid, p.ID, err)
		}
	}
	return out.String(), nil
}

// pinLoop looks after the pins of all models while this coordinator leads: what was evicted is computed again, and what lost its pin, because
// a request has stored it anew, gets it back.
func (c *Coordinator) pinLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-c.pinned:
		case <-ctx.Done():
			return
		}
		timer.Reset(c.opt.PinRefresh)
		if _, leads := c.leading(); !leads {
			continue
		}
		names, err := c.Models(ctx)
		for _, model := range names {
			err = errors.Join(err, c.refreshPins(ctx, model))
		}
		c.mu.Lock()
		if err != nil && ctx.Err() == nil {
			c.pinProblem = err.Error()
			c.opt.Logger.Warn("pins", "err", err)
		} else {
			c.pinProblem = ""
		}
		c.mu.Unlock()
	}
}

func (c *Coordinator) refreshPins(ctx context.Context, model string) error {
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	pins, err := c.opt.Control.pins(op, model)
	if err != nil || len(pins) == 0 {
		return err
	}
	v, workers, err := c.active(op, model)
	if err != nil || len(workers) == 0 {
		return err // nobody to ask: the next round
	}
	manifest, err := manifestOf(pins)
	if err != nil {
		return err
	}
	run, stop := context.WithTimeout(ctx, 10*c.opt.PinRefresh)
	defer stop()
	return c.opt.Warmer.Warm(run, WarmWork{
		Spec: JobSpec{Model: model}, Variant: v, Manifest: manifest, Workers: workers,
		Begin:  func(string) (func(int) bool, error) { return func(int) bool { return false }, nil },
		Mark:   func(int) error { return nil },
		Report: func(json.RawMessage) {},
	})
}

func (c *Coordinator) pinRoutes() []route {
	return []route{
		{"GET /v1/models/{name}/pins", answer(func(r *http.Request) (any, error) {
			if err := ValidateModel(r.PathValue("name")); err != nil {
				return nil, err
			}
			pins, err := c.opt.Control.pins(r.Context(), r.PathValue("name"))
			c.mu.Lock()
			defer c.mu.Unlock()
			return PinList{Pins: pins, Problem: c.pinProblem}, err
		})},
		{"POST /v1/models/{name}/pins", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var q PinRequest
			if err := httpapi.ReadJSON(w, r, 8*maxPinBytes, &q); err != nil {
				httpapi.WriteError(w, err)
				return
			}
			answer(func(r *http.Request) (any, error) { return c.AddPin(withCaller(r), r.PathValue("name"), q) })(w, r)
		})},
		{"DELETE /v1/models/{name}/pins/{id}", answer(func(r *http.Request) (any, error) {
			return c.RemovePin(withCaller(r), r.PathValue("name"), r.PathValue("id"))
		})},
	}
}

// AddPin pins a prompt.
func (c *Client) AddPin(ctx context.Context, model string, q PinRequest) (p Pin, err error) {
	return p, c.call(ctx, http.MethodPost, model, "pins", q, &p)
}

// Pins lists a model's pins, oldest first.
func (c *Client) Pins(ctx context.Context, model string) (l PinList, err error) {
	return l, c.call(ctx, http.MethodGet, model, "pins", nil, &l)
}

// RemovePin takes a pin back.
func (c *Client) RemovePin(ctx context.Context, model, id string) (p Pin, err error) {
	return p, c.call(ctx, http.MethodDelete, model, "pins/"+url.PathEscape(id), nil, &p)
}
