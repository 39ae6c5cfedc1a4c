package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSIGTERMTellsEverybody: with two requests that run for longer than the drain time-out and two that wait for a turn, a stream and a
// document each, nobody is cut off without a word. Who waits is told at once, who runs when the time is over.
func TestSIGTERMTellsEverybody(t *testing.T) {
	p := start(t, "worker", "--redis", "", "--sequences", "2", "--drain-timeout", "700ms", "--log-level", "debug")
	ask := func(stream bool) *http.Request {
		body := fmt.Sprintf(`{"prompt": "GREMIO:\n", "max_tokens": 2000, "temperature": 0, "stream": %v}`, stream)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/v1/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	type reply struct {
		status int
		retry  string
		code   string // of the error, in the document or in the last event
		events int
	}
	code := func(b []byte) string {
		var e struct {
			Error struct{ Code string }
		}
		if err := json.Unmarshal(b, &e); err != nil {
			return "not JSON: " + string(b)
		}
		return e.Error.Code
	}
	send := func(stream bool, first chan<- struct{}) <-chan reply {
		done := make(chan reply, 1)
		req := ask(stream)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				done <- reply{code: err.Error()}
				return
			}
			defer resp.Body.Close()
			r := reply{status: resp.StatusCode, retry: resp.Header.Get("Retry-After")}
			if resp.StatusCode != http.StatusOK || !stream {
				b, err := io.ReadAll(resp.Body)
				if r.code = code(b); err != nil {
					r.code = err.Error()
				}
				done <- r
				return
			}
			lines := bufio.NewScanner(resp.Body)
			last := ""
			for lines.Scan() {
				if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
					if r.events++; r.events == 1 && first != nil {
						close(first)
					}
					last = data
				}
			}
			if r.code = code([]byte(last)); lines.Err() != nil {
				r.code = lines.Err().Error()
			}
			done <- r
		}()
		return done
	}
	metric := func(name string, n int) func() bool {
		return func() bool {
			resp, err := http.Get(p.url + "/metrics")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return err == nil && strings.Contains(string(b), fmt.Sprintf("%s{priority=\"serving\"} %d\n", name, n))
		}
	}
	begun := make(chan struct{})
	stream := send(true, begun)
	<-begun
	document := send(false, nil)
	p.await("busy", 20*time.Second, metric("kvtier_running_sequences", 2))
	waits := []<-chan reply{send(false, nil), send(true, nil)}
	p.await("full", 20*time.Second, metric("kvtier_queue_requests", 2))
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for i, w := range waits {
		if got := <-w; got.status != http.StatusServiceUnavailable || got.code != "shutting_down" || got.retry == "" {
			t.Errorf("request %d that waited: %+v, want 503, shutting_down and Retry-After", i, got)
		}
	}
	select {
	case got := <-stream:
		t.Errorf("the stream ended before those who waited were told: %+v", got)
	default:
	}
	if got := <-document; got.status != http.StatusServiceUnavailable || got.code != "shutting_down" || got.retry == "" {
		t.Errorf("the document: %+v, want 503, shutting_down and Retry-After", got)
	}
	if got := <-stream; got.status != http.StatusOK || got.code != "shutting_down" || got.events < 2 {
		t.Errorf("the stream: %+v, want events and then one with the error shutting_down", got)
	}
	<-p.done
	if c := p.cmd.ProcessState.ExitCode(); c != 0 {
		t.Errorf("exit code %d", c)
	}
}
