package coordinator

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/httpapi/openapitest"
)

// TestDocumentHasEveryRoute: none is missing, none has gone.
func TestDocumentHasEveryRoute(t *testing.T) {
	var served []string
	for _, r := range newCoordinator(t, Options{Control: &Control{}}).routes() {
		served = append(served, r.pattern)
	}
	d := openapitest.Load(t, openAPI)
	d.HasRoutes(served)
	d.ListedIn("../docs/API.md")
}

// TestAnswersAreAsDescribed runs a model through its life with the client, with workers, and calls what the client does not.
func TestAnswersAreAsDescribed(t *testing.T) {
	srv := newServer(t)
	ctl := srv.control(t)
	c := newCoordinator(t, Options{Control: ctl, Store: &prefixed{rdb: ctl.rdb}, Reconcile: 5 * time.Millisecond, Lease: 20 * time.Millisecond, Warmer: &crew{}})
	h := openapitest.Load(t, openAPI).Check(c.Handler("secret"))
	hs := httptest.NewServer(h)
	defer hs.Close()
	cl, err := NewClient(ClientOptions{URL: hs.URL, Token: "secret", Actor: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx := t.Context()
	call := func(method, path, body string, want int) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, hs.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret")
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != want {
			t.Errorf("%s %s: %d, want %d: %s", method, path, resp.StatusCode, want, b)
		}
	}
	call("GET", "/healthz", "", 200)
	call("GET", "/readyz", "", 503)
	c.Start()
	defer c.Close()
	eventually(t, "ready", func() bool { return c.Ready() == nil })
	call("GET", "/readyz", "", 200)
	call("GET", "/v1/models", "", 200)
	call("GET", "/v1/models/m", "", 404)
	call("GET", "/metrics", "", 200)
	call("GET", "/openapi.yaml", "", 200)

	acme := block.Namespace(nil, "acme")
	v1 := must2(t)(cl.Register(ctx, "m", identity(1, 1), "v1"))
	must2(t)(cl.Add(ctx, "m", RegisterRequest{Label: "v2", Declared: "llama of tuesday", Layout: identity(1, 1).Layout.String(), Activate: true, Keep: true}))
	beat := Heartbeat{Incarnation: "w", Model: "m", Gen: v1.Gen, Sum: "x", Epoch: 1, State: Leased, Problem: "p", Refused: 1, Info: Info{
		Address: "a", Variant: identity(1, 1).Variant(), Label: "v1", Declared: true, Loadable: []string{"v1"}, Stats: map[string]float64{"hits": 1},
		Tenants: []TenantUse{{acme, 1, 2}, {block.Digest{}, 3, 4}},
	}}
	if err := ctl.Beat(ctx, beat, time.Now()); err != nil {
		t.Fatal(err)
	}
	must2(t)(cl.PurgeTenant(ctx, "m", acme))
	call("DELETE", "/v1/models/m/tenants/"+acme.String(), "", 200)
	call("DELETE", "/v1/models/m/tenants/acme", "", 400)
	call("POST", "/v1/models/m/purge", `{"version":"v1","tenant":"`+acme.String()+`"}`, 400)
	must2(t)(cl.Register(ctx, "m", identity(2, 1), "v3"))
	must2(t)(cl.Warm(ctx, "m", "v3"))
	must2(t)(cl.Purge(ctx, "m", "v1"))
	must2(t)(cl.Drain(ctx, "m", "v1"))
	must2(t)(cl.Revoke(ctx, "m", "v1"))
	must2(t)(cl.Activate(ctx, "m", "v1", false))
	st, err := cl.Status(ctx, "m")
	if err != nil || len(st.Tenants) != 2 || st.Tenants[1].Namespace != acme || st.Tenants[1].Purged == 0 || st.Leader == "" {
		t.Errorf("status: %+v, %v", st, err)
	}
	eventually(t, "reclaim reports", func() bool {
		st, err := cl.Status(ctx, "m")
		return err == nil && st.Reclaiming != nil && st.Reclaiming.Done
	})
	must2(t)(cl.Purge(ctx, "m", AllVersions))
	if st, err := cl.Status(ctx, "m"); err != nil || len(st.Tenants) != 2 || st.Tenants[1].Purged != 0 {
		t.Errorf("a purge of the model keeps %+v, %v", st.Tenants, err)
	}
	for name, err := range map[string]error{
		"both":       second(cl.Add(ctx, "m", RegisterRequest{Declared: "x", Weights: acme.String(), Layout: acme.String()})),
		"no layout":  second(cl.Add(ctx, "m", RegisterRequest{Declared: "x"})),
		"keep alone": second(cl.Add(ctx, "m", RegisterRequest{Declared: "x", Layout: acme.String(), Keep: true})),
	} {
		if e, ok := errors.AsType[*APIError](err); !ok || e.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	job, err := cl.AddWarmup(ctx, WarmupRequest{JobSpec: JobSpec{Model: "m", TokensPerS: 5}, Manifest: `{"prompt":"a"}`})
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{"pause", "resume", "cancel"} {
		call("POST", "/v1/warmups/"+job.ID+"/"+action, "", 200)
	}
	call("GET", "/v1/warmups/"+job.ID, "", 200)
	call("GET", "/v1/warmups", "", 200)
	call("GET", "/v1/warmups/none", "", 404)
	call("POST", "/v1/warmups", `{"model":"m","manifest":""}`, 400)
	call("POST", "/v1/warmups", `{"model":"none","manifest":"x"}`, 404)
	if _, err := cl.AddPin(ctx, "m", PinRequest{ID: "p", Prompt: "a"}); err != nil {
		t.Error(err)
	}
	call("POST", "/v1/models/m/pins", `{"tokens":[1,2]}`, 200)
	call("POST", "/v1/models/m/pins", `{"tokens":[1,2],"prompt":"x"}`, 400)
	if l, err := cl.Pins(ctx, "m"); err != nil || len(l.Pins) != 2 {
		t.Errorf("pins: %+v, %v", l, err)
	}
	if _, err := cl.RemovePin(ctx, "m", "p"); err != nil {
		t.Error(err)
	}
	call("DELETE", "/v1/models/m/pins/p", "", 404)
	call("POST", "/v1/models/m/repair", "", 400)
	if err := srv.Set(recordPrefix+"broken", `{"v":9,"gen":41,"variants":{}}`); err != nil {
		t.Fatal(err)
	}
	if res := must2(t)(cl.Repair(ctx, "broken")); res.Gen != 42 {
		t.Errorf("repaired as generation %d", res.Gen)
	}
	history, err := cl.History(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, h := range slices.Backward(history) {
		what = append(what, h.What)
		if h.Who != "a test" && h.What != "purge-tenant" || h.Via != c.opt.Owner || h.Gen == 0 || h.At == 0 {
			t.Errorf("%+v", h)
		}
	}
	if got, want := strings.Join(what, " "), "register activate purge-tenant purge-tenant register warm purge drain revoke activate purge"; got != want {
		t.Errorf("history: %s\nwant:    %s", got, want)
	}
	if missed := h.Missed(); len(missed) > 0 {
		t.Errorf("not called: %q", missed)
	}
}
