package coordinator

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// send sends a body and returns the status and the answer.
func send(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestDoubtfulRequestsChangeNothing: what could have been meant in two ways is refused, and the record is as it was.
func TestDoubtfulRequestsChangeNothing(t *testing.T) {
	c, hs, cl := service(t, "")
	must2(t)(cl.Register(t.Context(), "m", identity(1, 1), "v1"))
	must2(t)(cl.Register(t.Context(), "m", identity(2, 1), "v2"))
	record := func() string {
		s, err := c.opt.Control.Load(t.Context(), "m")
		if err != nil {
			t.Fatal(err)
		}
		return string(s.raw)
	}
	before := record()
	for _, tt := range []struct{ action, body, says string }{
		{"activate", `{"VERSION":"v2"}`, `unknown field \"VERSION\": the case counts, it is called version`},
		{"activate", `{"version":"v1","version":"v2"}`, `version is there twice`},
		{"activate", `{"version":"v1","Version":"v2"}`, `called version`},
		{"activate", `{"version":"v2","keep":null}`, `keep is null, want true or false`},
		{"activate", `{"version":null}`, `version is null, want a string`},
		{"activate", `[{"version":"v2"}]`, `the body is a JSON array, want an object`},
		{"revoke", `{"Version":"v1"}`, `called version`},
		{"drain", `{"version":"v1","version":"v1"}`, `version is there twice`},
		{"purge", `{"Tenant":"x"}`, `called tenant`},
		{"purge", `{"version":"v1","version":"v1"}`, `version is there twice`},
	} {
		status, answer := send(t, "POST", hs.URL+"/v1/models/m/"+tt.action, tt.body)
		if status != http.StatusBadRequest || !strings.Contains(answer, tt.says) {
			t.Errorf("%s %s: %d %s, want 400, %s", tt.action, tt.body, status, answer, tt.says)
		}
		if after := record(); after != before {
			t.Fatalf("%s %s: the record was %s, and is %s", tt.action, tt.body, before, after)
		}
	}
}
