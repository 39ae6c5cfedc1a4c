package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// echo is a server that answers with what its routes have understood.
func echo(opt Options) http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Pattern+" "+r.PathValue("name")+" "+r.PathValue("id"))
	}
	for _, pattern := range []string{"GET /healthz", "GET /v1/models", "GET /v1/models/{name}", "POST /v1/models", "POST /v1/models/{name}/purge", "DELETE /v1/models/{name}/pins/{id}", "POST /v1/chat/completions"} {
		mux.HandleFunc(pattern, say)
	}
	mux.HandleFunc("GET /broken", func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, io.ErrClosedPipe)
	})
	mux.HandleFunc("GET /id", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, RequestIDOf(r.Context())) })
	return Handler(mux, opt)
}

func ask(t *testing.T, h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestRoutes: what is meant is found without a redirect, and what is not is an error like every other.
func TestRoutes(t *testing.T) {
	h := echo(Options{})
	for _, tt := range []struct {
		method, path string
		status       int
		says, allow  string // says: the answer, or part of the error's message
	}{
		{"GET", "/v1/models", 200, "GET /v1/models  ", ""},
		{"HEAD", "/v1/models", 200, "GET /v1/models  ", ""}, // net/http's server leaves the body out
		{"GET", "/v1/models/", 200, "GET /v1/models  ", ""},
		{"GET", "//v1/models", 200, "GET /v1/models  ", ""},
		{"GET", "//v1///models//", 200, "GET /v1/models  ", ""},
		{"POST", "//v1/chat/completions", 200, "POST /v1/chat/completions  ", ""},
		{"GET", "/v1/models/a%2Fb", 200, "GET /v1/models/{name} a/b ", ""},
		{"GET", "//v1/models//a%2Fb/", 200, "GET /v1/models/{name} a/b ", ""},
		{"GET", "/v1/models/a%2F%2Fb", 200, "GET /v1/models/{name} a//b ", ""},
		{"GET", "/v1/models/a%20b/", 200, "GET /v1/models/{name} a b ", ""},
		{"GET", "/v1//models/%C3%A9", 200, "GET /v1/models/{name} é ", ""},
		{"DELETE", "/v1/models/a%2Fb/pins//x%2Fy", 200, "DELETE /v1/models/{name}/pins/{id} a/b x/y", ""},

		{"GET", "/", 404, "there is no GET /", ""},
		{"GET", "/nothing", 404, "there is no GET /nothing", ""},
		{"POST", "/chat/completions", 404, "there is no POST /chat/completions; there is /v1/chat/completions", ""},
		{"POST", "/v1/v1/chat/completions", 404, "; there is /v1/chat/completions", ""},
		{"GET", "/models", 404, "; there is /v1/models", ""},
		{"GET", "/v1/healthz", 404, "; there is /healthz", ""},
		{"GET", "/v1", 404, "there is no GET /v1", ""},
		{"GET", "/v1/../healthz", 404, "there is no GET /v1/../healthz", ""},
		{"GET", "/v1/models/..", 404, "there is no", ""},
		{"GET", "/./healthz", 404, "there is no", ""},
		{"GET", "/" + strings.Repeat("x", 5000), 404, "there is no", ""},

		{"PUT", "/v1/models", 405, "PUT is not for /v1/models, which takes GET, HEAD, POST", "GET, HEAD, POST"},
		{"GET", "/v1/chat/completions", 405, "which takes POST", "POST"},
		{"GET", "//v1/chat/completions/", 405, "which takes POST", "POST"},
		{"OPTIONS", "/v1/chat/completions", 405, "which takes POST", "POST"},
		{"BREW", "/healthz", 405, "BREW is not for /healthz", "GET, HEAD"},
	} {
		w := ask(t, h, tt.method, tt.path)
		if w.Code != tt.status || w.Header().Get("Allow") != tt.allow {
			t.Errorf("%s %.100s: %d, Allow %q, want %d, %q: %s", tt.method, tt.path, w.Code, w.Header().Get("Allow"), tt.status, tt.allow, w.Body)
			continue
		}
		if tt.status == 200 {
			if w.Body.String() != tt.says {
				t.Errorf("%s %s: %q, want %q", tt.method, tt.path, w.Body, tt.says)
			}
			continue
		}
		e, ok := ParseError(w.Code, w.Body.Bytes())
		if !ok || e.Type != TypeInvalidRequest || e.Code == "" || !strings.Contains(e.Message, tt.says) || len(e.Message) > 500 ||
			w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %.100s: %s, want the shape of every error, saying %q", tt.method, tt.path, w.Body, tt.says)
		}
	}
}

// TestNoPathAroundTheToken: cleaning happens before the token is asked for, so that only the open paths themselves are open.
func TestNoPathAroundTheToken(t *testing.T) {
	h := echo(Options{Token: "secret"})
	for path, want := range map[string]int{
		"/healthz": 200, "//healthz/": 200, "/v1/models": 401, "//v1/models": 401, "/healthz/../v1/models": 404, "/healthz%2F..%2Fv1/models": 401, "/nothing": 401,
	} {
		if w := ask(t, h, "GET", path); w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
}

func TestRequestID(t *testing.T) {
	h := echo(Options{})
	for given, kept := range map[string]bool{
		"abc": true, "req_01-A.b:c/d+e=@": true, strings.Repeat("x", 128): true,
		"": false, strings.Repeat("x", 129): false, "a b": false, "a\"b": false, "é": false, "a;b": false, "a\tb": false, "{}": false,
	} {
		w := ask(t, h, "GET", "/id", RequestIDHeader, given)
		got := w.Header().Get(RequestIDHeader)
		if w.Body.String() != got || (got == given) != kept || !plain(got) {
			t.Errorf("%q: answered %q, the handler saw %q, want it kept: %v", given, got, w.Body, kept)
		}
	}
	if a, b := ask(t, h, "GET", "/id").Body.String(), ask(t, h, "GET", "/id").Body.String(); a == b || !strings.HasPrefix(a, "req_") {
		t.Errorf("two requests are called %q and %q", a, b)
	}
	for _, path := range []string{"/nothing", "/v1/../x", "/broken"} { // errors have one too
		if w := ask(t, h, "GET", path, RequestIDHeader, "mine"); w.Header().Get(RequestIDHeader) != "mine" {
			t.Errorf("%s: %v", path, w.Header())
		}
	}
	if w := ask(t, echo(Options{Token: "x"}), "GET", "/v1/models", RequestIDHeader, "mine"); w.Code != 401 || w.Header().Get(RequestIDHeader) != "mine" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestRequestsAreLogged(t *testing.T) {
	for _, tt := range []struct {
		path, level, code string
		status            float64
	}{
		{"/id", "DEBUG", "", 200},
		{"/nothing", "INFO", "unknown_route", 404},
		{"/broken", "WARN", "internal_error", 500},
	} {
		var b bytes.Buffer
		h := echo(Options{Logger: slog.New(slog.NewJSONHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		ask(t, h, "GET", tt.path, RequestIDHeader, "mine")
		var line map[string]any
		if err := json.Unmarshal(b.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v: %s", tt.path, err, &b)
		}
		code, _ := line["code"].(string)
		if line["request_id"] != "mine" || line["level"] != tt.level || line["status"] != tt.status || line["path"] != tt.path || line["method"] != "GET" || code != tt.code {
			t.Errorf("%s: %s", tt.path, &b)
		}
	}
}

// TestStreamsPassThrough: what wraps an answer must not keep a handler from flushing it.
func TestStreamsPassThrough(t *testing.T) {
	mux := http.NewServeMux()
	sent := make(chan struct{})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-sent
	})
	srv := httptest.NewServer(Handler(mux, Options{}))
	defer srv.Close()
	defer srv.Client().CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first" {
		t.Errorf("%q, %v", first, err)
	}
	close(sent)
}

// FuzzHandler: whatever the path, no panic, no redirect, and an error has the shape of every error.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{"/v1/models", "//v1//models/a%2Fb", "/..", "/%2e%2e/x", "/v1/%zz", "*", "/%00", "/a?b#c"} {
		f.Add("GET", s)
	}
	h := echo(Options{})
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://x/", nil)
		if err != nil {
			return
		}
		u, err := r.URL.Parse(target)
		if err != nil {
			return
		}
		r.URL, r.RequestURI = u, target
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 300 && w.Code < 400 {
			t.Fatalf("%s %q: a redirect to %s", method, target, w.Header().Get("Location"))
		}
		if _, ok := ParseError(w.Code, w.Body.Bytes()); w.Code >= 400 && !ok {
			t.Fatalf("%s %q: %d %s", method, target, w.Code, w.Body)
		}
	})
}
