package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// service is a coordinator behind HTTP, with a client.
func service(t *testing.T, token string) (*Coordinator, *httptest.Server, *Client) {
	t.Helper()
	srv := newServer(t)
	c := newCoordinator(t, Options{Control: srv.control(t), Warmer: &crew{}})
	hs := httptest.NewServer(c.Handler(token))
	t.Cleanup(hs.Close)
	cl, err := NewClient(ClientOptions{URL: hs.URL + "/", Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, hs, cl
}

func TestClientAndServer(t *testing.T) {
	_, _, cl := service(t, "secret")
	ctx := t.Context()
	res := must2(t)(cl.Register(ctx, "m", identity(1, 1), "v1"))
	if !res.Changed || res.Gen != 1 || res.Version == nil || res.Version.State != Active || res.Version.Variant != identity(1, 1).Variant() {
		t.Errorf("register: %+v", res)
	}
	if again := must2(t)(cl.Register(ctx, "m", identity(1, 1), "v1")); again.Changed || again.Gen != 1 {
		t.Errorf("register again: %+v", again)
	}
	must2(t)(cl.Register(ctx, "m", identity(2, 1), "v2"))
	if res = must2(t)(cl.Activate(ctx, "m", "v2", true)); len(res.Versions) != 2 || res.Versions[0].Label != "v2" || res.Versions[1].State != Active {
		t.Errorf("activate with keep: %+v", res)
	}
	if res = must2(t)(cl.Drain(ctx, "m", "v1")); res.Versions[1].State != Draining {
		t.Errorf("drain: %+v", res)
	}
	if res = must2(t)(cl.Revoke(ctx, "m", "v1")); res.Versions[1].State != Revoked {
		t.Errorf("revoke: %+v", res)
	}
	before := res.Versions[0]
	if res = must2(t)(cl.Purge(ctx, "m", AllVersions)); res.Versions[0].Epoch <= before.Epoch || res.Versions[0].Act == before.Act {
		t.Errorf("purge: %+v", res)
	}
	st, err := cl.Status(ctx, "m")
	if err != nil || st.Gen != res.Gen || len(st.Versions) != 2 || len(st.Reclaims) != 2 || !st.Invalidation.Complete || st.Invalidation.Gen != res.Gen {
		t.Errorf("status: %+v, %v", st, err)
	}
	if names, err := cl.Models(ctx); err != nil || !slices.Equal(names, []string{"m"}) {
		t.Errorf("models: %v, %v", names, err)
	}
	for name, err := range map[string]struct{ got, want error }{
		"no model":   {second(cl.Activate(ctx, "n", "v1", false)), ErrNoModel},
		"no version": {second(cl.Activate(ctx, "m", "v9", false)), ErrNoVersion},
		"no name":    {second(cl.Activate(ctx, "m", "", false)), ErrInvalid},
		"bad label":  {second(cl.Register(ctx, "m", identity(3, 1), "a b")), ErrInvalid},
		"bad model":  {second(cl.Purge(ctx, "..", AllVersions)), ErrInvalid},
	} {
		if !errors.Is(err.got, err.want) {
			t.Errorf("%s: %v, want %v", name, err.got, err.want)
		}
	}
	if _, err := cl.Status(ctx, "n"); !errors.Is(err, ErrNoModel) || !strings.Contains(err.Error(), "404") {
		t.Errorf("status of nothing: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestRoutesAskForTheToken goes over every route.
func TestRoutesAskForTheToken(t *testing.T) {
	_, hs, _ := service(t, "secret")
	for route, open := range map[string]bool{
		"GET /healthz": true, "GET /readyz": true, "GET /metrics": false,
		"GET /v1/models": false, "GET /v1/models/m": false, "POST /v1/models/m/versions": false, "POST /v1/models/m/activate": false,
		"POST /v1/models/m/purge": false, "POST /v1/models/m/drain": false, "POST /v1/models/m/revoke": false, "GET /nothing": false,
	} {
		method, path, _ := strings.Cut(route, " ")
		for auth, ok := range map[string]bool{"": open, "Bearer wrong": open, "Bearer secret": true, "secret": open, "Basic secret": open} {
			req, _ := http.NewRequestWithContext(t.Context(), method, hs.URL+path, strings.NewReader("{}"))
			if auth != "" {
				req.Header.Set("Authorization", auth)
			}
			resp, err := hs.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if (resp.StatusCode != http.StatusUnauthorized) != ok {
				t.Errorf("%s with %q: %d", route, auth, resp.StatusCode)
			}
		}
	}
}

func TestErrorAnswers(t *testing.T) {
	_, hs, _ := service(t, "")
	good := `{"label":"v1","weights":"` + identity(1, 1).Weights.String() + `","layout":"` + identity(1, 1).Layout.String() + `"}`
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/v1/models/m/versions", good, 200, `"changed":true`},
		{"POST", "/v1/models/m/versions", ``, 400, `the body is empty`},
		{"POST", "/v1/models/m/versions", `{"weight":"x"}`, 400, `unknown field \"weight\"`},
		{"POST", "/v1/models/m/versions", `{"label":1}`, 400, `label is a JSON number, want a string`},
		{"POST", "/v1/models/m/versions", good + `x`, 400, `something follows`},
		{"POST", "/v1/models/m/versions", `{"label":"v1"}`, 400, `weights: block: digest has 0 characters`},
		{"POST", "/v1/models/m/versions", strings.Repeat(" ", 1<<17), 413, `longer than 65536 bytes`},
		{"POST", "/v1/warmups", `{"model":"m","manifest":"` + strings.Repeat("x", MaxManifestBytes+1) + `"}`, 413, `kvtier warmup run`},
		{"POST", "/v1/warmups", strings.Repeat(" ", 6*MaxManifestBytes+maxJobBytes+1), 413, `kvtier warmup run`},
		{"POST", "/v1/models/m/versions", strings.Replace(good, `"v1"`, `"v 1"`, 1), 400, `only letters`},
		{"POST", "/v1/models/m%20/versions", good, 400, `model name`},
		{"POST", "/v1/models/m/activate", `{"version":"v9"}`, 404, `version_not_found`},
		{"POST", "/v1/models/m/activate", `{}`, 400, `a version is needed`},
		{"POST", "/v1/models/m/purge", ``, 200, `"changed":true`},
		{"POST", "/v1/models/m/purge", `{"keep":true}`, 400, `unknown field`},
		{"GET", "/v1/models/none", ``, 404, `model_not_found`},
		{"GET", "/v1/nothing", ``, 404, `unknown_route`},
		{"GET", "/readyz", ``, 503, `not_ready`},
		{"GET", "/healthz", ``, 200, `ok`},
		{"GET", "/metrics", ``, 200, `kvtier_coordinator_transitions_total{kind="purge"} 1`},
		{"GET", "/metrics", ``, 200, `kvtier_coordinator_versions{model="m",state="active"} 1`},
	} {
		req, _ := http.NewRequestWithContext(t.Context(), tt.method, hs.URL+tt.path, strings.NewReader(tt.body))
		resp, err := hs.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.says) {
			t.Errorf("%s %s %.60s: %d %s; want %d, %s", tt.method, tt.path, tt.body, resp.StatusCode, body, tt.status, tt.says)
		}
		if tt.status >= 400 {
			var e struct {
				Error struct{ Message, Type, Code string }
			}
			if json.Unmarshal(body, &e) != nil || e.Error.Message == "" || e.Error.Type == "" || e.Error.Code == "" {
				t.Errorf("%s %s: the error is not in OpenAI's shape: %s", tt.method, tt.path, body)
			}
		}
	}
}

// TestOtherSitesPagesAreRefused: without a token, a server on loopback would otherwise do what any web page says.
func TestOtherSitesPagesAreRefused(t *testing.T) {
	_, hs, _ := service(t, "")
	req, _ := http.NewRequestWithContext(t.Context(), "POST", hs.URL+"/v1/models/m/purge", nil)
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := hs.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("got %d, want 403", resp.StatusCode)
	}
}

func TestRedisDownIs503(t *testing.T) {
	srv := newServer(t)
	c := newCoordinator(t, Options{Control: srv.control(t), Warmer: &crew{}})
	hs := httptest.NewServer(c.Handler(""))
	defer hs.Close()
	cl, err := NewClient(ClientOptions{URL: hs.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	srv.cut(true)
	// The client would wait longer: that there is an answer says that the coordinator gave up in time.
	_, err = cl.Register(t.Context(), "m", identity(1, 1), "v1")
	if e, ok := errors.AsType[*APIError](err); !ok || e.Status != 503 || e.Code != "redis_unavailable" {
		t.Errorf("got %v, want 503", err)
	}
}

func TestClientAgainstOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"a page":     {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not what a coordinator says"},
		"a proxy":    {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad gateway", 502) }, "502"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://example.com/", 302) }, "302"},
		"silence":    {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			hs := httptest.NewServer(tt.answer)
			defer hs.Close()
			cl, err := NewClient(ClientOptions{URL: hs.URL, Timeout: 100 * time.Millisecond, Token: "t"})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if _, err := cl.Status(context.WithoutCancel(t.Context()), "m"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for _, bad := range []string{"", "localhost:7070", "ftp://x", "http://"} {
		if _, err := NewClient(ClientOptions{URL: bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("URL %q: %v", bad, err)
		}
	}
}
