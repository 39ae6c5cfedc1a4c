package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadJSON(t *testing.T) {
	type inner struct {
		Temperature float64 `json:"temperature"`
	}
	type body struct {
		Model   string   `json:"model"`
		Max     int      `json:"max_tokens"`
		Stop    []string `json:"stop"`
		Stream  bool     `json:"stream"`
		Options inner    `json:"options"`
	}
	for _, tt := range []struct {
		name, body, contentType string
		code, param, says       string // "" for success
	}{
		{name: "good", body: `{"model":"m","max_tokens":3}`, contentType: "application/json; charset=utf-8"},
		{name: "curl's default", body: `{"model":"m"}`, contentType: "application/x-www-form-urlencoded"},
		{name: "spaces around", body: " {}\n "},
		{name: "empty", code: "missing_body", says: "empty"},
		{name: "other type", body: `{}`, contentType: "text/plain", code: "unsupported_media_type", says: "text/plain"},
		{name: "broken type", body: `{}`, contentType: ";;", code: "unsupported_media_type"},
		{name: "unknown", body: `{"mdl":"m"}`, code: "unknown_field", param: "mdl", says: `"mdl"`},
		{name: "wrong type", body: `{"model":3}`, code: "invalid_type", param: "model", says: "model is a JSON number, want a string"},
		{name: "wrong number", body: `{"max_tokens":1.5}`, code: "invalid_type", param: "max_tokens", says: "want a whole number"},
		{name: "wrong list", body: `{"stop":"x"}`, code: "invalid_type", param: "stop", says: "want an array"},
		{name: "wrong flag", body: `{"stream":"x"}`, code: "invalid_type", param: "stream", says: "want true or false"},
		{name: "nested", body: `{"options":{"temperature":"x"}}`, code: "invalid_type", param: "options.temperature", says: "want a number"},
		{name: "twice", body: `{"model":"a","model":"b"}`, code: "repeated_field", param: "model", says: "twice"},
		{name: "other case", body: `{"options":{"Temperature":1}}`, code: "unknown_field", param: "options.Temperature", says: "called temperature"},
		{name: "null", body: `{"model":null}`, code: "invalid_type", param: "model", says: "model is null, want a string"},
		{name: "not UTF-8", body: "{\"model\":\"\xff\"}", code: "invalid_utf8", says: "UTF-8"},
		{name: "not an object", body: `[1]`, code: "invalid_type", says: "want an object"},
		{name: "cut", body: `{"model":"m`, code: "invalid_json", says: "middle"},
		{name: "syntax", body: `{"model":}`, code: "invalid_json", says: "at byte"},
		{name: "trailing", body: `{} {}`, code: "invalid_json", says: "follows"},
		{name: "trailing junk", body: `{} x`, code: "invalid_json", says: "follows"},
		{name: "too long", body: `{"model":"` + strings.Repeat("x", 300) + `"}`, code: "body_too_large", says: "200 bytes"},
		{name: "too long behind", body: `{}` + strings.Repeat(" ", 300), code: "body_too_large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			var b body
			err := ReadJSON(httptest.NewRecorder(), r, 200, &b)
			if tt.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Code != tt.code || e.Param != tt.param || !strings.Contains(e.Message, tt.says) || e.Status < 400 || e.Status > 499 {
				t.Errorf("got %#v, want code %q, param %q, saying %q", err, tt.code, tt.param, tt.says)
			}
		})
	}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(`{"model":null,"stop":null}`))
	if err := ReadOpenAIJSON(httptest.NewRecorder(), r, 0, &body{}); err != nil {
		t.Errorf("null in OpenAI's API: %v", err)
	}
	r = httptest.NewRequestWithContext(t.Context(), "POST", "/", io.NopCloser(io.MultiReader(strings.NewReader("{"), failing{})))
	if err := ReadJSON(httptest.NewRecorder(), r, 0, &body{}); err == nil || !strings.Contains(err.Error(), "did not arrive") {
		t.Errorf("a connection that ended: %v", err)
	}
	r = httptest.NewRequestWithContext(t.Context(), "POST", "/", http.NoBody)
	if err := ReadOptionalJSON(httptest.NewRecorder(), r, 0, &body{}); err != nil {
		t.Errorf("an optional body: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// FuzzReadJSON: whatever comes in, the answer is success or a 4xx in the right shape.
func FuzzReadJSON(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a":"x","b":[{}]}`, `{"c":1}`, "", "[[[[", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var dst struct {
			A string `json:"a"`
			B []struct{ N int }
		}
		w := httptest.NewRecorder()
		err := ReadJSON(w, httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(s)), 1000, &dst)
		if err == nil {
			return
		}
		WriteError(w, err)
		if e, ok := ParseError(w.Code, w.Body.Bytes()); !ok || w.Code < 400 || w.Code > 499 || e.Code == "" {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

func TestWriteError(t *testing.T) {
	w := httptest.NewRecorder()
	WriteError(w, BadRequest("bad", "field", "field is bad"))
	want := `{"error":{"message":"field is bad","type":"invalid_request_error","code":"bad","param":"field"}}` + "\n"
	if w.Code != 400 || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	WriteError(w, errors.New("oops"))
	if e, ok := ParseError(w.Code, w.Body.Bytes()); !ok || e.Status != 500 || e.Message != "oops" || e.Type != TypeServer {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if _, ok := ParseError(502, []byte("<html>")); ok {
		t.Error("a page was taken for an error body")
	}
	w = httptest.NewRecorder()
	WriteJSON(w, 200, func() {})
	if w.Code != 500 {
		t.Errorf("what cannot be encoded: %d", w.Code)
	}
}

func TestRequireToken(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	for _, tt := range []struct {
		token, path, auth string
		want              int
	}{
		{"", "/v1", "", 204},
		{"s", "/v1", "", 401},
		{"s", "/v1", "Bearer s", 204},
		{"s", "/v1", "bearer s", 204},
		{"s", "/v1", "Bearer  s ", 204},
		{"s", "/v1", "Bearer S", 401},
		{"s", "/v1", "Bearer", 401},
		{"s", "/v1", "s", 401},
		{"s", "/v1", "Basic s", 401},
		{"s", "/healthz", "", 204},
		{"s", "/readyz", "", 204},
		{"s", "/healthz/../v1", "", 401},
		{"s", "/metrics", "", 401},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", tt.path, nil)
		if tt.auth != "" {
			r.Header.Set("Authorization", tt.auth)
		}
		w := httptest.NewRecorder()
		RequireToken(tt.token, ok).ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("token %q, %s, %q: %d, want %d", tt.token, tt.path, tt.auth, w.Code, tt.want)
		}
	}
}

func TestValidateListen(t *testing.T) {
	for _, tt := range []struct {
		addr, token string
		insecure    bool
		ok          bool
	}{
		{"127.0.0.1:8080", "", false, true},
		{"127.9.9.9:0", "", false, true},
		{"[::1]:8080", "", false, true},
		{"[::ffff:127.0.0.1]:8080", "", false, true},
		{"localhost:8080", "", false, true},
		{":8080", "", false, false},
		{"0.0.0.0:8080", "", false, false},
		{"[::]:8080", "", false, false},
		{"10.0.0.1:8080", "", false, false},
		{"example.com:8080", "", false, false},
		{"localhost.example.com:8080", "", false, false},
		{"0.0.0.0:8080", "secret", false, true},
		{"0.0.0.0:8080", "", true, true},
		{"127.0.0.1", "", false, false},
		{"127.0.0.1:http", "", false, false},
		{"127.0.0.1:99999", "", false, false},
		{"", "x", true, false},
	} {
		err := ValidateListen(tt.addr, tt.token, tt.insecure)
		if (err == nil) != tt.ok {
			t.Errorf("%q, token %q, insecure %v: %v", tt.addr, tt.token, tt.insecure, err)
		}
	}
	err := ValidateListen("0.0.0.0:8080", "", false)
	if !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), "--insecure") || !strings.Contains(err.Error(), "127.0.0.1:8080") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestServeStopsGracefully(t *testing.T) {
	for name, tt := range map[string]struct {
		work, grace time.Duration
		finished    bool
	}{
		"a request that ends in time": {50 * time.Millisecond, 5 * time.Second, true},
		"one that does not":           {time.Hour, 50 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			begun, ended := make(chan struct{}), make(chan bool, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				select {
				case <-time.After(tt.work):
					_, _ = io.WriteString(w, "done")
					ended <- true
				case <-r.Context().Done():
					if !errors.Is(context.Cause(r.Context()), ErrShutdown) {
						t.Errorf("the request ended because of %v", context.Cause(r.Context()))
					}
					_, _ = io.WriteString(w, "cut short")
					ended <- false
				}
			})
			ctx, stop := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- Serve(ctx, ln, h, tt.grace) }()
			tr := &http.Transport{}
			defer tr.CloseIdleConnections()
			answered := make(chan string, 1)
			go func() {
				req, _ := http.NewRequestWithContext(context.WithoutCancel(ctx), "GET", "http://"+ln.Addr().String(), nil)
				resp, err := tr.RoundTrip(req)
				if err != nil {
					answered <- err.Error()
					return
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					b = []byte(err.Error())
				}
				answered <- string(b)
			}()
			<-begun
			stop()
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
			if got := <-ended; got != tt.finished {
				t.Errorf("the request finished: %v, want %v", got, tt.finished)
			}
			if got, want := <-answered, map[bool]string{true: "done", false: "cut short"}[tt.finished]; got != want {
				t.Errorf("the client got %q, want %q", got, want)
			}
		})
	}
	if err := ListenAndServe(t.Context(), "127.0.0.1:-1", nil, 0); err == nil {
		t.Error("listening on a bad address succeeded")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := Serve(t.Context(), ln, http.NotFoundHandler(), time.Second); err == nil {
		t.Error("serving on a closed listener succeeded")
	}
}

func TestLimitBodiesAndSameOrigin(t *testing.T) {
	h := SameOrigin(LimitBodies(10, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(413)
		}
	})))
	for _, tt := range []struct {
		body, site string
		want       int
	}{{"short", "", 200}, {"much too long for it", "", 413}, {"short", "cross-site", 403}, {"short", "same-origin", 200}} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(tt.body))
		if tt.site != "" {
			r.Header.Set("Sec-Fetch-Site", tt.site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%q from %q: %d, want %d", tt.body, tt.site, w.Code, tt.want)
		}
	}
}
