package warmup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker"
)

// maxAnswer bounds what is read of a worker's answer.
const maxAnswer = 64 << 20

// Remote is a worker that is asked over HTTP.
type Remote struct {
	base    string
	token   string
	http    *http.Client
	variant *block.Variant
}

var _ Worker = (*Remote)(nil)

// NewRemote checks the worker's base URL; it does not connect.
func NewRemote(base, token string) (*Remote, error) {
	if u, err := url.Parse(base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("worker %q: want a URL such as http://127.0.0.1:8080", base)
	}
	return &Remote{base: strings.TrimRight(base, "/"), token: token, http: http.DefaultClient}, nil
}

// Expect makes the worker refuse to warm for any variant but v.
func (r *Remote) Expect(v block.Variant) { r.variant = &v }

// Name implements Worker.
func (r *Remote) Name() string { return r.base }

// Info asks what the worker would warm for.
func (r *Remote) Info(ctx context.Context) (worker.WarmInfo, error) {
	var info worker.WarmInfo
	err := r.call(ctx, http.MethodGet, "/v1/warm", nil, &info)
	if err == nil && (info.BlockTokens < 1 || info.BlockTokens > block.MaxBlockTokens) {
		err = fmt.Errorf("%s: not the answer of a kvtier worker", r.base)
	}
	return info, err
}

// Ping implements Worker.
func (r *Remote) Ping(ctx context.Context) error {
	info, err := r.Info(ctx)
	switch {
	case err != nil:
		return err
	case r.variant != nil && info.Variant != *r.variant:
		return fmt.Errorf("%w: %s serves %v (%s) now, not %v", ErrStop, r.base, info.Variant, info.Label, *r.variant)
	case !info.Shared:
		return fmt.Errorf("%w: %s may not use the remote tier now", ErrWorker, r.base)
	}
	return nil
}

// Warm implements Worker.
func (r *Remote) Warm(ctx context.Context, req Request) (Outcome, error) {
	var a worker.WarmAnswer
	err := r.call(ctx, http.MethodPost, "/v1/warm", worker.WarmBody{Tokens: req.Tokens, CacheSalt: req.Salt, Pin: req.Pin, Variant: r.variant}, &a)
	if err != nil {
		return Outcome{}, judge(err)
	}
	return Outcome{ComputedTokens: a.ComputedTokens, StoredBytes: a.StoredBytes}, nil
}

// Measure computes tokens without using or filling the tier, and says how long that took and how large the result would be.
func (r *Remote) Measure(ctx context.Context, tokens []int32) (worker.WarmAnswer, error) {
	var a worker.WarmAnswer
	err := r.call(ctx, http.MethodPost, "/v1/warm", worker.WarmBody{Tokens: tokens, Variant: r.variant, Measure: true}, &a)
	return a, err
}

// Look counts the tokens of full blocks that are stored already, from the front.
func (r *Remote) Look(ctx context.Context, req Request) (int, error) {
	var a worker.WarmAnswer
	err := r.call(ctx, http.MethodPost, "/v1/warm", worker.WarmBody{Tokens: req.Tokens, CacheSalt: req.Salt, Variant: r.variant, Look: true}, &a)
	return a.PresentTokens, err
}

// Release lets what was pinned of tokens expire again.
func (r *Remote) Release(ctx context.Context, tokens []int32, salt string) error {
	var a worker.WarmAnswer
	return r.call(ctx, http.MethodPost, "/v1/warm", worker.WarmBody{Tokens: tokens, CacheSalt: salt, Variant: r.variant, Unpin: true}, &a)
}

// judge says whose fault an error is.
func judge(err error) error {
	e, answered := errors.AsType[*httpapi.Error](err)
	switch {
	case !answered:
		return fmt.Errorf("%w: %w", ErrWorker, err)
	case e.Code == worker.CodeVariant || e.Code == worker.CodeNotGranted || e.Code == worker.CodeTierFull || e.Status == http.StatusUnauthorized:
		return fmt.Errorf("%w: %w", ErrStop, err)
	case e.Status >= http.StatusInternalServerError && e.Status != http.StatusNotImplemented || e.Status == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w", ErrWorker, err)
	}
	return err
}

// Tokenize asks for the tokens of texts or of conversations.
func (r *Remote) Tokenize(ctx context.Context, body worker.TokenizeBody) ([][]int32, error) {
	var a worker.TokenizeAnswer
	if err := r.call(ctx, http.MethodPost, "/v1/warm/tokens", body, &a); err != nil {
		return nil, err
	}
	if n := len(body.Prompts) + len(body.Conversations); len(a.Tokens) != n {
		return nil, fmt.Errorf("%s: %d lists of tokens for %d prompts", r.base, len(a.Tokens), n)
	}
	return a.Tokens, nil
}

// call sends one request. A refusal is an *httpapi.Error, wrapped with the worker's URL.
func (r *Remote) call(ctx context.Context, method, path string, request, dst any) error {
	var body io.Reader
	if request != nil {
		b, err := json.Marshal(request)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s: %w", r.base, err)
	}
	if resp.StatusCode != http.StatusOK {
		e, ok := httpapi.ParseError(resp.StatusCode, answer)
		if !ok {
			e = &httpapi.Error{Status: resp.StatusCode, Message: "no reason given"}
		}
		return fmt.Errorf("%s answered %s: %w", r.base, resp.Status, e)
	}
	if err := json.Unmarshal(answer, dst); err != nil {
		return fmt.Errorf("%s: not the answer of a kvtier worker: %w", r.base, err)
	}
	return nil
}

// Local is a worker in this process.
type Local struct {
	Replica *worker.Replica
	Variant block.Variant
	Label   string
}

var _ Worker = (*Local)(nil)

// Name implements Worker.
func (l *Local) Name() string { return l.Label }

// Ping implements Worker.
func (l *Local) Ping(context.Context) error {
	if info := l.Replica.WarmInfo(""); !info.Shared {
		return fmt.Errorf("%w: the remote tier may not be used now", ErrWorker)
	}
	return nil
}

// Look counts the tokens of full blocks that are stored already, from the front.
func (l *Local) Look(ctx context.Context, req Request) (int, error) {
	res, err := l.Replica.Warm(ctx, worker.WarmRequest{Tokens: req.Tokens, Salt: req.Salt, Variant: l.Variant, Look: true})
	return res.PresentTokens, err
}

// Warm implements Worker.
func (l *Local) Warm(ctx context.Context, req Request) (Outcome, error) {
	res, err := l.Replica.Warm(ctx, worker.WarmRequest{Tokens: req.Tokens, Salt: req.Salt, Pin: req.Pin, Variant: l.Variant})
	switch {
	case errors.Is(err, worker.ErrVariant), errors.Is(err, worker.ErrNotGranted):
		err = fmt.Errorf("%w: %w", ErrStop, err)
	case errors.Is(err, worker.ErrTier), errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w: %w", ErrWorker, err)
	}
	return Outcome{ComputedTokens: res.ComputedTokens, StoredBytes: res.StoredBytes}, err
}
