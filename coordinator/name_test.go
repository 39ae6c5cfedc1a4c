package coordinator

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Empty is never read as all: a call that takes something away does so when it says what, or nothing at all where that means everything. What is
// refused leaves the record as it was, byte by byte.
func TestEmptyIsNotAll(t *testing.T) {
	c, hs, cl := service(t, "")
	must2(t)(cl.Register(t.Context(), "m", identity(1, 1), "v1"))
	must2(t)(cl.Register(t.Context(), "m", identity(2, 1), "v2"))
	must2(t)(cl.Activate(t.Context(), "m", "v2", true))
	if _, err := cl.AddPin(t.Context(), "m", PinRequest{ID: "p", Prompt: "x"}); err != nil {
		t.Fatal(err)
	}
	record := func() string {
		s, err := c.opt.Control.Load(t.Context(), "m")
		if err != nil {
			t.Fatal(err)
		}
		pins, err := c.opt.Control.pins(t.Context(), "m")
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(pins)
		if err != nil {
			t.Fatal(err)
		}
		return string(s.raw) + string(b)
	}
	before := record()
	tenant := strings.Repeat("ab", 32)
	for _, x := range []struct{ method, path, body, says string }{
		{"POST", "/v1/models/m/purge", `{"tenant":""}`, "tenant is empty: name it, or leave it out"},
		{"POST", "/v1/models/m/purge", `{"version":""}`, "version is empty"},
		{"POST", "/v1/models/m/purge", `{"version":null}`, "version is empty"},
		{"POST", "/v1/models/m/purge", `{"tenant":null}`, "tenant is empty"},
		{"POST", "/v1/models/m/purge", `null`, "null"},
		{"POST", "/v1/models/m/purge", `[]`, "array"},
		{"POST", "/v1/models/m/purge", `{"version":["v1"]}`, "string"},
		{"POST", "/v1/models/m/purge", `{"version":"v1","tenant":""}`, "tenant is empty"},
		{"POST", "/v1/models/m/purge", `{"version":"v1","tenant":"` + tenant + `"}`, "not of both"},
		{"POST", "/v1/models/m/purge", `{"version":" "}`, "none called"},
		{"POST", "/v1/models/m/revoke", `{"version":""}`, "a version is needed"},
		{"POST", "/v1/models/m/revoke", `{"version":"*"}`, "none called"},
		{"POST", "/v1/models/m/revoke", `{}`, "a version is needed"},
		{"POST", "/v1/models/m/revoke", `null`, "null"},
		{"POST", "/v1/models/m/drain", `{"version":""}`, "a version is needed"},
		{"POST", "/v1/models/m/activate", `{"version":""}`, "a version is needed"},
		{"POST", "/v1/models/m/warm", `{"version":null}`, "version is null"},
		{"DELETE", "/v1/models/m/pins/", ``, ""},
		{"DELETE", "/v1/models/m/pins", ``, ""},
		{"DELETE", "/v1/models/m/tenants/", ``, ""},
		{"POST", "/v1/models//purge", ``, ""},
		{"POST", "/v1/warmups//cancel", ``, ""},
	} {
		status, answer := send(t, x.method, hs.URL+x.path, x.body)
		if status < 300 || status >= 500 || !strings.Contains(answer, x.says) {
			t.Errorf("%s %s %s: %d %s; want 4xx and %q", x.method, x.path, x.body, status, answer, x.says)
		}
		if got := record(); got != before {
			t.Fatalf("%s %s %s has changed the record", x.method, x.path, x.body)
		}
	}
	if _, err := cl.Purge(t.Context(), "m", ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("the client purges for an empty version: %v", err)
	}
	for _, body := range []string{"", "{}"} { // these mean the whole model, as documented
		epoch := must2(t)(cl.Activate(t.Context(), "m", "v2", true)).Versions[0].Epoch
		if status, answer := send(t, "POST", hs.URL+"/v1/models/m/purge", body); status != http.StatusOK {
			t.Errorf("purge of the model: %d %s", status, answer)
		}
		s, err := cl.Status(t.Context(), "m")
		if err != nil || s.Versions[0].Epoch <= epoch || s.Versions[1].Epoch <= epoch {
			t.Errorf("a purge of the model with %q leaves an epoch: %+v, %v", body, s.Versions, err)
		}
	}
}

// A model may be called what the world calls it, and its name may stand in a path as it is or with its slashes escaped.
func TestModelNamesMayHaveSlashes(t *testing.T) {
	_, hs, cl := service(t, "")
	const model = "meta-llama/Llama-3-8B"
	must2(t)(cl.Register(t.Context(), model, identity(1, 1), "v1"))
	must2(t)(cl.Register(t.Context(), "meta-llama", identity(2, 1), "other"))
	for _, name := range []string{model, url.PathEscape(model)} {
		status, answer := send(t, "GET", hs.URL+"/v1/models/"+name, "")
		var s Status
		if err := json.Unmarshal([]byte(answer), &s); status != http.StatusOK || err != nil || s.Model != model || len(s.Versions) != 1 || s.Versions[0].Label != "v1" {
			t.Errorf("GET %s: %d %s", name, status, answer)
		}
		if status, answer := send(t, "GET", hs.URL+"/v1/models/"+name+"/history", ""); status != http.StatusOK || !strings.Contains(answer, "register") {
			t.Errorf("history of %s: %d %s", name, status, answer)
		}
		if status, answer := send(t, "POST", hs.URL+"/v1/models/"+name+"/purge", `{"version":"v1"}`); status != http.StatusOK || !strings.Contains(answer, `"`+model+`"`) {
			t.Errorf("purge of %s: %d %s", name, status, answer)
		}
		if status, answer := send(t, "DELETE", hs.URL+"/v1/models/"+name+"/tenants/"+strings.Repeat("ab", 32), ""); status != http.StatusOK {
			t.Errorf("purge of a tenant of %s: %d %s", name, status, answer)
		}
		if status, answer := send(t, "POST", hs.URL+"/v1/models/"+name+"/pins", `{"id":"p","prompt":"x"}`); status != http.StatusOK {
			t.Errorf("pin of %s: %d %s", name, status, answer)
		}
		if status, answer := send(t, "DELETE", hs.URL+"/v1/models/"+name+"/pins/p", ""); status != http.StatusOK {
			t.Errorf("pin of %s removed: %d %s", name, status, answer)
		}
	}
	if names, err := cl.Models(t.Context()); err != nil || strings.Join(names, " ") != "meta-llama "+model {
		t.Errorf("models: %v, %v", names, err)
	}
	if s, err := cl.Status(t.Context(), "meta-llama"); err != nil || s.Gen != 1 {
		t.Errorf("the model before the slash: %+v, %v", s, err)
	}
	if p, err := cl.AddPin(t.Context(), model, PinRequest{ID: "q", Prompt: "x"}); err != nil || p.ID != "q" {
		t.Errorf("pin by the client: %v", err)
	}
}

func TestModelNamesThatAreRefused(t *testing.T) {
	for _, bad := range []string{"", "/", "a/", "/a", "a//b", "a/../b", "a/.", "..", "a b", "a\x00", "a%2Fb", "ä", "a/b/purge", "m/history", "m/pins/x", "a/tenants/b",
		strings.Repeat("a", maxModelBytes+1), "a:b", "{a}", "a*"} {
		if err := ValidateModel(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q can be a model's name", bad)
		}
	}
	for _, good := range []string{"m", "meta-llama/Llama-3-8B", "a/b/c", "purge", "pins", "org/pins-7b", strings.Repeat("a", maxModelBytes)} {
		if err := ValidateModel(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}
