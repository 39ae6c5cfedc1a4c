package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary builds kvtier once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "kvtier-integration-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kvtier")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/kvtier").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// process is a running kvtier server.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	url  string
	log  syncBuffer
	done chan struct{}
	err  error // once done is closed
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a server on a free port and waits until it is ready.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	return startAt(t, freeAddr(t), args...)
}

// startAt is start on an address of the caller's choice, such as that of a process that is gone.
func startAt(t testing.TB, addr string, args ...string) *process {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return launchAt(t, addr, path, nil, args...)
}

// launch is start for another binary, and with variables in its environment.
func launch(t testing.TB, path string, env []string, args ...string) *process {
	t.Helper()
	return launchAt(t, freeAddr(t), path, env, args...)
}

func launchAt(t testing.TB, addr, path string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path, append(args, "--listen", addr)...), url: "http://" + addr, done: make(chan struct{})}
	p.cmd.Stderr = &p.log
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...) // nothing of the developer's own settings
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("log of %v:\n%s", args, p.log.String())
		}
	})
	p.await("ready", 20*time.Second, func() bool {
		resp, err := http.Get(p.url + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (p *process) await(what string, limit time.Duration, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.done:
			p.t.Fatalf("ended while it should become %s: %v\n%s", what, p.err, p.log.String())
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not %s within %v\n%s", what, limit, p.log.String())
		}
	}
}

// terminate asks the process to stop and returns its exit code.
func (p *process) terminate() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Fatal("did not stop")
	}
	return p.cmd.ProcessState.ExitCode()
}

// answer is the part of a completion that the tests look at.
type answer struct {
	Choices []struct {
		TokenIDs []int32 `json:"token_ids"`
	} `json:"choices"`
	Usage struct {
		PromptTokens int `json:"prompt_tokens"`
		Details      struct {
			Cached int `json:"cached_tokens"`
			Hot    int `json:"kvtier_hot_tokens"`
			Remote int `json:"kvtier_remote_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
	KVTier struct {
		Label    string `json:"label"`
		Miss     string `json:"miss"`
		Degraded bool   `json:"degraded"`

		TTFT float64 `json:"ttft_ms"`
	} `json:"kvtier"`
}

func (p *process) complete(prompt string) answer {
	p.t.Helper()
	a, err := p.tryComplete(prompt)
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// tryComplete is complete for processes that may be gone, and for goroutines of their own.
func (p *process) tryComplete(prompt string) (a answer, err error) {
	body, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": 8, "temperature": 0})
	if err != nil {
		return a, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return a, errors.Join(fmt.Errorf("%s: %s", resp.Status, b), err)
	}
	if err := json.Unmarshal(b, &a); err != nil || len(a.Choices) != 1 {
		return a, errors.Join(fmt.Errorf("no completion: %s", b), err)
	}
	return a, nil
}

func (p *process) status() (status string) {
	resp, err := http.Get(p.url + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var s struct{ Status string }
	_ = json.NewDecoder(resp.Body).Decode(&s)
	return s.Status
}

// kvtier runs a subcommand to its end.
func kvtier(t testing.TB, args ...string) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kvtier %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
