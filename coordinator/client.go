package coordinator

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
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi"
)

// ClientOptions configure a Client. URL is required.
type ClientOptions struct {
	URL     string        // of the coordinator, such as http://127.0.0.1:7070
	Token   string        // bearer token, "" for none
	Timeout time.Duration // of a request; default 10 s
	HTTP    *http.Client  // default: one of its own, which follows no redirects
	Actor   string        // who is said to ask, in histories; nobody checks it
}

// Client speaks the coordinator's HTTP API. It is safe for concurrent use. Errors that the coordinator answers with keep their sentinel:
// errors.Is(err, ErrNoVersion) works on both sides.
type Client struct {
	base    *url.URL
	token   string
	actor   string
	timeout time.Duration
	http    *http.Client
}

// maxAnswerBytes bounds an answer: a status of a full record with many workers is below it.
const maxAnswerBytes = 64 << 20

// NewClient checks the options; it does not connect.
func NewClient(opt ClientOptions) (*Client, error) {
	u, err := url.Parse(opt.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w: coordinator URL %q: want http://host:port or https://host:port", ErrInvalid, opt.URL)
	}
	if opt.Timeout < 0 {
		return nil, fmt.Errorf("%w: ClientOptions.Timeout %v", ErrInvalid, opt.Timeout)
	}
	c := &Client{base: u, token: opt.Token, actor: opt.Actor, timeout: orDefault(opt.Timeout, 10*time.Second), http: opt.HTTP}
	if c.http == nil {
		c.http = &http.Client{
			Transport: http.DefaultTransport.(*http.Transport).Clone(),
			// The token must not follow a redirect to somebody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return c, nil
}

// Close releases idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// APIError is an error that the coordinator answered with.
type APIError struct {
	Status  int
	Code    string
	Message string
}

func (e *APIError) Error() string {
	return fmt.Sprintf("coordinator answered %d: %s", e.Status, strings.TrimPrefix(e.Message, "coordinator: "))
}

// Is lets the coordinator's sentinels be recognised.
func (e *APIError) Is(target error) bool {
	for _, m := range errorCodes() {
		if m.err == target {
			return e.Code == m.code
		}
	}
	return false
}

// Register makes a variant of a model known; label "" keeps the one before.
func (c *Client) Register(ctx context.Context, model string, id block.Identity, label string) (Result, error) {
	return c.Add(ctx, model, RegisterRequest{Label: label, Weights: id.Weights.String(), Layout: id.Layout.String()})
}

// Add makes a variant of a model known, and active in the same step if asked to.
func (c *Client) Add(ctx context.Context, model string, req RegisterRequest) (Result, error) {
	return c.change(ctx, model, "versions", req)
}

// Activate makes a version active. With keep other weights stay active too.
func (c *Client) Activate(ctx context.Context, model, version string, keep bool) (Result, error) {
	return c.change(ctx, model, "activate", ActivateRequest{Version: version, Keep: keep})
}

// Purge makes all entries of a version unreachable, with AllVersions those of the whole model.
func (c *Client) Purge(ctx context.Context, model, version string) (Result, error) {
	if version == "" {
		return Result{}, fmt.Errorf("%w: the version to purge is empty: name it, or all of them", ErrInvalid)
	}
	if version == AllVersions {
		return c.change(ctx, model, "purge", struct{}{})
	}
	return c.change(ctx, model, "purge", map[string]string{"version": version})
}

// PurgeTenant makes all entries of one tenant unreachable. ns is block.Namespace of the tenant's salt: the salt itself is not sent.
func (c *Client) PurgeTenant(ctx context.Context, model string, ns block.Digest) (Result, error) {
	return c.change(ctx, model, "purge", map[string]string{"tenant": ns.String()})
}

// Repair writes what is left of a damaged record, with new epochs.
func (c *Client) Repair(ctx context.Context, model string) (Result, error) {
	return c.change(ctx, model, "repair", struct{}{})
}

// History returns a model's last changes, newest first.
func (c *Client) History(ctx context.Context, model string) ([]Change, error) {
	var h History
	err := c.call(ctx, http.MethodGet, model, "history", nil, &h)
	return h.Changes, err
}

// Warm lets entries of a version be stored before it is activated.
func (c *Client) Warm(ctx context.Context, model, version string) (Result, error) {
	return c.change(ctx, model, "warm", VersionRequest{Version: version})
}

// Drain marks a version as on its way out.
func (c *Client) Drain(ctx context.Context, model, version string) (Result, error) {
	return c.change(ctx, model, "drain", VersionRequest{Version: version})
}

// Revoke takes a version's entries away for good.
func (c *Client) Revoke(ctx context.Context, model, version string) (Result, error) {
	return c.change(ctx, model, "revoke", VersionRequest{Version: version})
}

// Status returns everything that is known about a model.
func (c *Client) Status(ctx context.Context, model string) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, model, "", nil, &s)
	return s, err
}

// Models lists the names of all models.
func (c *Client) Models(ctx context.Context) ([]string, error) {
	var l ModelList
	err := c.do(ctx, http.MethodGet, c.base.JoinPath("v1", "models"), nil, &l)
	return l.Models, err
}

func (c *Client) change(ctx context.Context, model, action string, req any) (Result, error) {
	var res Result
	err := c.call(ctx, http.MethodPost, model, action, req, &res)
	return res, err
}

func (c *Client) call(ctx context.Context, method, model, action string, req, dst any) error {
	if err := ValidateModel(model); err != nil {
		return err
	}
	return c.do(ctx, method, c.base.JoinPath("v1", "models", model, action), req, dst)
}

func (c *Client) do(ctx context.Context, method string, u *url.URL, req, dst any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var body io.Reader
	if req != nil {
		b, err := json.Marshal(req)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		body = bytes.NewReader(b)
	}
	hr, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if body != nil {
		hr.Header.Set("Content-Type", "application/json")
	}
	if c.actor != "" {
		hr.Header.Set(ActorHeader, c.actor)
	}
	if c.token != "" {
		hr.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(hr)
	if err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("coordinator: %s %s: read the answer: %w", method, u.Path, err)
	case len(answer) > maxAnswerBytes:
		return fmt.Errorf("coordinator: %s %s: the answer is longer than %d bytes", method, u.Path, maxAnswerBytes)
	case resp.StatusCode != http.StatusOK:
		if e, ok := httpapi.ParseError(resp.StatusCode, answer); ok {
			return &APIError{Status: e.Status, Code: e.Code, Message: e.Message}
		}
		return &APIError{Status: resp.StatusCode, Code: "unknown", Message: fmt.Sprintf("%.200q", answer)}
	}
	if err := json.Unmarshal(answer, dst); err != nil {
		return errors.Join(fmt.Errorf("coordinator: %s %s: the answer is not what a coordinator says", method, u.Path), err)
	}
	return nil
}
