package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/worker"
)

// metric reads one line of /metrics, "" if it is not there.
func metric(t testing.TB, s *httptest.Server, name string) string {
	t.Helper()
	resp, err := s.Client().Get(s.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return value
		}
	}
	return ""
}

// eventually waits for a metric to have a value: what a server does behind an answer, or without one, cannot be seen otherwise.
func eventually(t testing.TB, s *httptest.Server, name, want string) {
	t.Helper()
	var got string
	if !poll(func() bool { got = metric(t, s, name); return got == want }) {
		t.Fatalf("%s is %q, want %s", name, got, want)
	}
}

// A client that goes away in the middle of an answer ends its computation, and gives up its place.
func TestAClientThatDisconnects(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, watch, func(o *worker.Options) { o.MaxSequences = 1 })
	s := serve(t, r, worker.HandlerOptions{})
	for _, stream := range []bool{true, false} {
		computing, gone := make(chan struct{}), make(chan struct{})
		watch.before = func(c call) error {
			if c.pos == 20 {
				close(computing)
				<-gone
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/completions", strings.NewReader(fmt.Sprintf(`{"prompt":"a","max_tokens":2000,"temperature":0,"stream":%v}`, stream)))
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan error)
		go func() {
			resp, err := s.Client().Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			answered <- err
		}()
		<-computing
		cancel()
		if err := <-answered; !errors.Is(err, context.Canceled) {
			t.Errorf("the client: %v", err)
		}
		close(gone)
		eventually(t, s, `kvtier_running_sequences{priority="serving"}`, "0")
	}
	eventually(t, s, `kvtier_requests_total{outcome="cancelled"}`, "2")
	if status, answer := post(t, s, `{"prompt":"a","max_tokens":1}`); status != http.StatusOK {
		t.Errorf("afterwards: %d %s", status, answer)
	}
}

// A client that reads nothing is cut off. Its computation does not wait for it.
func TestAClientThatDoesNotRead(t *testing.T) {
	r := replicaOf(t, tiny(t), func(o *worker.Options) { o.MaxSequences = 1 })
	s := httptest.NewUnstartedServer(worker.Handler(r, worker.HandlerOptions{Model: "shakespeare", WriteTimeout: 50 * time.Millisecond}))
	s.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_ = c.(*net.TCPConn).SetWriteBuffer(1) // as small as the system makes it
		return ctx
	}
	s.Start()
	t.Cleanup(s.Close)
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(1)
	// Logprobs make for more text than the buffers of both ends can hold.
	body := `{"prompt":"a","max_tokens":1500,"stream":true,"logprobs":5,"temperature":0}`
	if _, err := fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Fatal(err)
	}
	eventually(t, s, `kvtier_requests_total{outcome="cancelled"}`, "1")
	eventually(t, s, `kvtier_running_sequences{priority="serving"}`, "0")
}

func TestAFullWorkerSaysSo(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, watch, func(o *worker.Options) { o.MaxSequences, o.MaxQueue = 1, -1 })
	s := serve(t, r, worker.HandlerOptions{})
	begun, release := make(chan struct{}), make(chan struct{})
	watch.before = func(c call) error {
		if c.seq == 1 && c.pos == 0 {
			close(begun)
			<-release
		}
		return nil
	}
	first := make(chan int)
	go func() {
		status, _ := post(t, s, `{"prompt":"a","max_tokens":1}`)
		first <- status
	}()
	<-begun
	resp, err := s.Client().Post(s.URL+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"a","stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if e, ok := httpapi.ParseError(resp.StatusCode, b); !ok || e.Status != http.StatusTooManyRequests || e.Code != "too_many_requests" || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%d, Retry-After %q, %s", resp.StatusCode, resp.Header.Get("Retry-After"), b)
	}
	close(release)
	if status := <-first; status != http.StatusOK {
		t.Errorf("the first: %d", status)
	}
	if got := metric(t, s, `kvtier_requests_total{outcome="busy"}`); got != "1" {
		t.Errorf("%q requests counted as busy", got)
	}
}

// An engine that fails gives a 500, or an error event where the stream has begun; time that is up a 504.
func TestFailuresOnTheWay(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	r := replicaOf(t, watch, func(o *worker.Options) { o.MaxSequences = 1 })
	s := serve(t, r, worker.HandlerOptions{RequestTimeout: 20 * time.Second})
	after := 0 // tokens that work
	watch.before = func(c call) error {
		if c.pos >= after {
			return errors.New("the engine is on fire")
		}
		return nil
	}
	for _, body := range []string{`{"prompt":"abc","temperature":0,"max_tokens":30}`, `{"prompt":"abc","temperature":0,"max_tokens":30,"stream":true}`} {
		if status, answer := post(t, s, body); status != http.StatusInternalServerError || !strings.Contains(answer, "on fire") || !strings.Contains(answer, "server_error") {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	after = 10
	status, answer := post(t, s, `{"prompt":"abc","temperature":0,"max_tokens":30,"stream":true}`)
	events := strings.Split(strings.TrimSpace(answer), "\n\n")
	if last := events[len(events)-1]; status != http.StatusOK || len(events) < 3 || !strings.Contains(last, `{"error":{`) || !strings.Contains(last, "on fire") {
		t.Errorf("%d %s", status, answer)
	}
	watch.before = func(call) error { return context.DeadlineExceeded }
	if status, answer := post(t, s, `{"prompt":"abc"}`); status != http.StatusGatewayTimeout {
		t.Errorf("%d %s", status, answer)
	}
	watch.before = nil
	if status, answer := post(t, s, `{"prompt":"abc","max_tokens":1}`); status != http.StatusOK {
		t.Errorf("afterwards: %d %s", status, answer)
	}
	for outcome, want := range map[string]string{"ok": "1", "error": "3", "timeout": "1"} {
		if got := metric(t, s, fmt.Sprintf("kvtier_requests_total{outcome=%q}", outcome)); got != want {
			t.Errorf("%q requests of outcome %s, want %s", got, outcome, want)
		}
	}
}

func TestBadChatsAreRefusedByName(t *testing.T) {
	s := serve(t, replicaOf(t, tiny(t), nil), worker.HandlerOptions{})
	chat := func(s *httptest.Server, body string) (int, string) {
		resp, err := s.Client().Post(s.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	for name, c := range map[string]struct{ body, want string }{
		"no messages":    {`{}`, "messages is missing"},
		"empty":          {`{"messages":[]}`, "messages is missing"},
		"role":           {`{"messages":[{"role":"king","content":"a"}]}`, "role"},
		"no role":        {`{"messages":[{"content":"a"}]}`, "role"},
		"tool":           {`{"messages":[{"role":"tool","content":"a"}]}`, "role"},
		"tool calls":     {`{"messages":[{"role":"assistant","tool_calls":[{}]}]}`, "tool"},
		"content":        {`{"messages":[{"role":"user","content":7}]}`, "content"},
		"part":           {`{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}`, "input_audio"},
		"unknown":        {`{"messages":[{"role":"user","content":"a"}],"top_k":4}`, "top_k"},
		"in a message":   {`{"messages":[{"role":"user","text":"a"}]}`, "text"},
		"format":         {`{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_object"}}`, "response_format"},
		"likeliest":      {`{"messages":[{"role":"user","content":"a"}],"top_logprobs":2}`, "logprobs"},
		"many likeliest": {`{"messages":[{"role":"user","content":"a"}],"logprobs":true,"top_logprobs":21}`, "0 to 20"},
		"negative":       {`{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":-1}`, "max_completion_tokens is -1"},
		"schema":         {`{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":{"name":"a","strict":true,"schema":{"type":"object"}}}}`, "'response_format' of type 'json_schema' is not supported with this model"},
		"too long":       {`{"messages":[{"role":"user","content":"` + strings.Repeat("a long text ", 400) + `"}]}`, "This model's maximum context length is 2048 tokens. However, your prompt is too long: it has"},
		"number as text": {`{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}`, "temperature"},
	} {
		status, answer := chat(s, c.body)
		if _, ok := httpapi.ParseError(status, []byte(answer)); !ok || status != http.StatusBadRequest || !strings.Contains(answer, c.want) {
			t.Errorf("%s: %d %s; want 400 and an error that mentions %s", name, status, answer, c.want)
		}
	}
	if status, answer := chat(s, `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null}],"max_tokens":1,"store":false,"metadata":{"a":"b"},"tool_choice":"none","tools":[],"response_format":{"type":"text"}}`); status != http.StatusOK {
		t.Errorf("harmless fields: %d %s", status, answer)
	}
	broken := serve(t, replicaOf(t, tiny(t), nil), worker.HandlerOptions{ChatTemplate: "{% nonsense %}"})
	if status, answer := chat(broken, `{"messages":[{"role":"user","content":"a"}]}`); status != http.StatusNotImplemented || !strings.Contains(answer, "--chat-template") {
		t.Errorf("a template that nobody can read: %d %s", status, answer)
	}
	if status, answer := post(t, broken, `{"prompt":"a","max_tokens":1}`); status != http.StatusOK {
		t.Errorf("completions of such a worker: %d %s", status, answer)
	}
	echo := serve(t, replicaOf(t, tiny(t), nil), worker.HandlerOptions{ChatTemplate: "{{ messages[0].nothing.at_all }}"})
	if status, answer := chat(echo, `{"messages":[{"role":"user","content":"a"}]}`); status != http.StatusBadRequest {
		t.Errorf("a template that gives nothing: %d %s", status, answer)
	}
}

// Whatever is sent gets a JSON answer that is no 5xx, and nothing panics.
func FuzzRequests(f *testing.F) {
	r := replicaOf(f, tiny(f), nil)
	h := worker.Handler(r, worker.HandlerOptions{Model: "shakespeare"})
	for _, body := range []string{
		`{"prompt":"a","max_tokens":2}`, `{"prompt":[3,4],"stop":["a"],"n":2,"logprobs":2,"seed":-1}`, `{"prompt":"\ud800","stream":true,"max_tokens":1}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"max_tokens":1,"stream":true,"stream_options":{"include_usage":true}}`, `[`, "\xff",
	} {
		f.Add(true, []byte(body))
		f.Add(false, []byte(body))
	}
	f.Fuzz(func(t *testing.T, chat bool, body []byte) {
		path := "/v1/completions"
		if chat {
			path = "/v1/chat/completions"
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // some ask for a full context
		defer cancel()
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body)))
		if rec.Code >= 500 && rec.Code != http.StatusGatewayTimeout || rec.Code != http.StatusOK && !strings.Contains(rec.Body.String(), `"error"`) {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	})
}
