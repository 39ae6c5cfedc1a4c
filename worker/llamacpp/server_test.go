package llamacpp_test

import (
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvtier/kvtier/internal/testllama"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
	"github.com/kvtier/kvtier/worker/llamacpp"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"))
}

const shipped = "../../models/shakespeare-3m-v2.gguf"

// always makes an engine read back whatever is new.
const always = 1 << 30

// open opens an engine over a server and closes it with the test.
func open(t *testing.T, opts llamacpp.Options) *llamacpp.Engine {
	t.Helper()
	opts.Logger = slog.New(slog.NewTextHandler(writer{t}, nil))
	e, err := llamacpp.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return e
}

// writer is the test's log, for as long as the test runs.
type writer struct{ t *testing.T }

func (w writer) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

func TestConformance(t *testing.T) {
	for name, args := range map[string][]string{
		"own K/V per slot": {"--parallel", "3", "--ctx-size", "3072", "--threads", "1"},
		"shared K/V":       {"--parallel", "3", "--ctx-size", "1024", "--threads", "1", "--kv-unified", "--cache-ram", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			server := testllama.Start(t, shipped, args...)
			enginetest.RunGenerator(t, func(t *testing.T) engine.Engine {
				e := open(t, llamacpp.Options{URL: server.URL(), Checkpoint: shipped, SlotsDir: server.SlotsDir, SaveShare: always})
				if why := e.Degraded(); why != "" {
					t.Fatal(why)
				}
				return e
			})
			left, err := os.ReadDir(server.SlotsDir)
			if err != nil || len(left) > 0 {
				t.Errorf("files left in the slot directory: %v (error %v)", left, err)
			}
		})
	}
}
