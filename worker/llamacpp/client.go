package llamacpp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// ErrServer means that llama-server did not answer, or not in a way that can be understood. It is an [engine.ErrUnavailable].
var ErrServer error = serverError{}

type serverError struct{}

func (serverError) Error() string        { return "llamacpp: llama-server" }
func (serverError) Is(target error) bool { return target == engine.ErrUnavailable }

const (
	maxAnswer = 64 << 20 // of anything but a stream: a vocabulary of tokens for a megabyte of text fits
	maxEvent  = 4 << 20  // of one event of a stream
	// idleTime is less than the server's own, so that no request meets a connection that is being closed.
	idleTime = 4 * time.Second
)

// client speaks HTTP with one llama-server. It is safe for concurrent use.
type client struct {
	base  string
	key   string
	http  *http.Client
	close func()        // idle connections
	calls time.Duration // bound of everything but a completion
	stall time.Duration // longest silence within a completion
	// changes counts connections that were opened or closed. As long as it stays the same, the process behind the address has, too.
	changes *atomic.Int64
}

// countedConn notes its end.
type countedConn struct {
	net.Conn
	changes *atomic.Int64
}

func (c countedConn) Close() error {
	c.changes.Add(1)
	return c.Conn.Close()
}

// newClient checks the address. conns bounds the connections: the server has a thread for each, few more than slots.
func newClient(o Options, conns int) (*client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("llamacpp: URL is %q, want one like http://127.0.0.1:8080", o.URL)
	}
	c := &client{base: strings.TrimSuffix(u.String(), "/"), key: o.APIKey, calls: o.CallTimeout, stall: o.StallTimeout, changes: new(atomic.Int64)}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{ // no proxy: the server is beside this process
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			c.changes.Add(1) // a failed one too: the server may be about to come back as another
			if err != nil {
				return nil, err
			}
			return countedConn{conn, c.changes}, nil
		},
		MaxConnsPerHost: conns, MaxIdleConnsPerHost: conns, IdleConnTimeout: idleTime, DisableCompression: true,
	}
	c.http, c.close = &http.Client{Transport: transport}, transport.CloseIdleConnections
	if o.wrap != nil {
		c.http.Transport = o.wrap(transport)
	}
	return c, nil
}

// send starts a request. The caller closes the body.
func (c *client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	req.Header["Idempotency-Key"] = nil // sends nothing, and lets net/http repeat what met a connection that the server had closed
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.fault(ctx, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return nil, fmt.Errorf("%w: %s answers %s: %s", ErrServer, path, resp.Status, reason(b))
	}
	return resp, nil
}

// fault names what went wrong, and keeps the context's own error where that ended the call.
func (c *client) fault(ctx context.Context, path string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	} else if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fmt.Errorf("%w at %s: %s: %w", ErrServer, c.base, path, err)
}

// reason is the message of an error in the server's shape, or the beginning of whatever it is.
func reason(b []byte) string {
	var e struct{ Error struct{ Message string } }
	if json.Unmarshal(b, &e) == nil && e.Error.Message != "" {
		b = []byte(e.Error.Message)
	}
	return fmt.Sprintf("%.200q", b)
}

// call does one exchange and decodes the answer into out.
func (c *client) call(ctx context.Context, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.calls, fmt.Errorf("no answer within %v: %w", c.calls, context.DeadlineExceeded))
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return c.fault(ctx, path, err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("%w: %s answers more than %d bytes", ErrServer, path, maxAnswer)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: %s answers what is not understood: %w: %.100q", ErrServer, path, err, b)
	}
	return nil
}

// props is what the server says of itself.
type props struct {
	Slots     int    `json:"total_slots"`
	ModelPath string `json:"model_path"`
	Build     string `json:"build_info"`
	BOS       string `json:"bos_token"`
	EOS       string `json:"eos_token"`
	Template  string `json:"chat_template"`
	// Marker is random in every process: it tells a server that was restarted.
	Marker   string `json:"media_marker"`
	Defaults struct {
		Context int `json:"n_ctx"` // of one slot
	} `json:"default_generation_settings"`
}

// fixedMarker is what servers have that draw none.
const fixedMarker = "<__media__>"

func (c *client) props(ctx context.Context) (p props, err error) {
	if err = c.call(ctx, http.MethodGet, "/props", nil, &p); err != nil {
		return p, err
	}
	if p.Slots < 1 || p.Slots > maxStreams || p.Defaults.Context < 1 || p.Defaults.Context > maxSlotCells || len(p.Build) > 64 {
		return p, fmt.Errorf("%w: /props tells of %d slots of %d tokens in build %.80q: not a llama-server this worker knows", ErrServer, p.Slots, p.Defaults.Context, p.Build)
	}
	return p, nil
}

// modelInfo is what the server says of the file that it has loaded.
type modelInfo struct {
	Vocab int   `json:"n_vocab"`
	Size  int64 `json:"size"` // of all tensors
}

func (c *client) model(ctx context.Context) (modelInfo, error) {
	var list struct {
		Data []struct{ Meta modelInfo }
	}
	if err := c.call(ctx, http.MethodGet, "/v1/models", nil, &list); err != nil {
		return modelInfo{}, err
	}
	if len(list.Data) != 1 || list.Data[0].Meta.Vocab < 1 || list.Data[0].Meta.Vocab > maxSlotCells {
		return modelInfo{}, fmt.Errorf("%w: /v1/models lists %d models, want one with its vocabulary", ErrServer, len(list.Data))
	}
	return list.Data[0].Meta, nil
}

func (c *client) adapters(ctx context.Context) (n int, err error) {
	var list []struct{}
	err = c.call(ctx, http.MethodGet, "/lora-adapters", nil, &list)
	return len(list), err
}

func (c *client) tokenize(ctx context.Context, text string, begin, special bool) (tokens []int32, err error) {
	var out struct{ Tokens []int32 }
	err = c.call(ctx, http.MethodPost, "/tokenize", map[string]any{"content": text, "add_special": begin, "parse_special": special}, &out)
	return out.Tokens, err
}

func (c *client) detokenize(ctx context.Context, tokens []int32) (text string, err error) {
	var out struct{ Content string }
	err = c.call(ctx, http.MethodPost, "/detokenize", map[string]any{"tokens": tokens}, &out)
	return out.Content, err
}

// save makes the server write a slot's K/V to a file in its slot directory.
func (c *client) save(ctx context.Context, slot int, file string) (tokens int, err error) {
	var out struct {
		Saved int `json:"n_saved"`
	}
	err = c.call(ctx, http.MethodPost, fmt.Sprintf("/slots/%d?action=save", slot), map[string]string{"filename": file}, &out)
	return out.Saved, err
}

// restore makes the server replace a slot's K/V by that of a file.
func (c *client) restore(ctx context.Context, slot int, file string) (tokens int, err error) {
	var out struct {
		Restored int `json:"n_restored"`
	}
	err = c.call(ctx, http.MethodPost, fmt.Sprintf("/slots/%d?action=restore", slot), map[string]string{"filename": file}, &out)
	return out.Restored, err
}
