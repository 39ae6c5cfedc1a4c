package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
)

func TestBenchNamesWhatIsWrong(t *testing.T) {
	m := miniredis.RunT(t)
	url := "redis://" + m.Addr()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown part":       {[]string{"remot"}, "remote"},
		"no server":          {[]string{"remote"}, "--redis"},
		"bad URL":            {[]string{"remote", "--redis", "localhost"}, "valid forms"},
		"cluster":            {[]string{"remote", "--redis", "redis+cluster://" + m.Addr()}, "one node"},
		"size":               {[]string{"remote", "--redis", url, "--value-bytes", "lots"}, "256MiB"},
		"odd size":           {[]string{"remote", "--redis", url, "--value-bytes", "1000"}, "multiple of"},
		"value above data":   {[]string{"remote", "--redis", url, "--value-bytes", "32MiB", "--data-bytes", "4MiB"}, "--data-bytes"},
		"too much data":      {[]string{"remote", "--redis", url, "--data-bytes", "1TiB"}, "16GiB"},
		"connections":        {[]string{"remote", "--redis", url, "--connections", "0"}, "--connections"},
		"duration":           {[]string{"hot", "--duration", "-1s"}, "--duration"},
		"no rate":            {[]string{"advise"}, "--gbps"},
		"unknown model":      {[]string{"advise", "--model", "GPT-99", "--gbps", "1"}, "Llama-3-8B"},
		"model and layout":   {[]string{"advise", "--model", "a", "--layout", "b", "--gbps", "1"}, "exclude"},
		"bad layout":         {[]string{"advise", "--layout", "layers=1", "--gbps", "1"}, "kv_heads"},
		"negative rate":      {[]string{"advise", "--gbps", "-1"}, "GB/s"},
		"argument":           {[]string{"hash", "now"}, "now"},
		"password in errors": {[]string{"remote", "--redis", "redis://u:hunter2@host:port"}, "redis"},
	} {
		code, _, stderr := kvtier(t, append([]string{"bench"}, c.args...)...)
		if code != exitUsage || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "hunter2") {
			t.Errorf("%s: exit code %d, %s; want %d and a message that mentions %q", name, code, stderr, exitUsage, c.want)
		}
	}
	if code, _, stderr := kvtier(t, "bench", "remote", "--redis", "redis://127.0.0.1:1"); code != exitFailed || !strings.Contains(stderr, "is it running") {
		t.Errorf("server that is down: exit code %d, %s; want %d", code, stderr, exitFailed)
	}
}

// The names are an interface: scripts read them.
func TestBenchJSONNames(t *testing.T) {
	m := miniredis.RunT(t)
	code, stdout, stderr := kvtier(t, "bench", "all", "--json", "--duration", "20ms", "--redis", "redis://"+m.Addr(), "--value-bytes", "64KiB", "--data-bytes", "1MiB")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var doc struct {
		Machine map[string]any
		Server  map[string]any
		Remote  []map[string]any
		Probe   map[string]any
		Hot     map[string]any
		Codec   []map[string]any
		Hash    map[string]any
	}
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if len(doc.Remote) != 4 || len(doc.Codec) != 3 {
		t.Fatalf("%d remote rows, %d codecs", len(doc.Remote), len(doc.Codec))
	}
	loss, ok := doc.Codec[2]["loss"].(map[string]any)
	if !ok || doc.Codec[2]["lossless"] != false {
		t.Fatalf("the lossy codec does not say what it loses: %v", doc.Codec[2])
	}
	for what, c := range map[string]struct {
		have map[string]any
		want string
	}{
		"loss":    {loss, "model prefix_tokens scored_tokens perplexity_exact perplexity logit_rms logit_max logit_spread same_top"},
		"remote":  {doc.Remote[0], "op value_bytes connections gbps raw_gbps ratio allocs_per_op client_cpu_s_per_gb"},
		"probe":   {doc.Probe, "blocks ms"},
		"hot":     {doc.Hot, "ns_per_hit allocs_per_hit"},
		"codec":   {doc.Codec[0], "name ratio encode_gbps decode_gbps lossless"},
		"hash":    {doc.Hash, "tokens_per_s"},
		"machine": {doc.Machine, "cpu cpus go os load"},
		"server":  {doc.Server, "product version warnings"},
	} {
		for name := range strings.FieldsSeq(c.want) {
			if _, ok := c.have[name]; !ok {
				t.Errorf("%s has no field %q: %v", what, name, c.have)
			}
		}
	}
}

func TestBenchTables(t *testing.T) {
	m := miniredis.RunT(t)
	code, stdout, stderr := kvtier(t, "bench", "advise", "--duration", "20ms", "--redis", "redis://"+m.Addr(), "--value-bytes", "64KiB",
		"--data-bytes", "1MiB", "--model", "Llama-3-8B")
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{"verified", "probe of 2,048 blocks", "131,072", "the tier pays as long as", "H100", "estimates"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if !strings.Contains(stderr, "warning:") {
		t.Errorf("a server that tells nothing of its settings gave no warning: %s", stderr)
	}
	code, stdout, stderr = kvtier(t, "bench", "all", "--duration", "20ms")
	if code != exitOK || !strings.Contains(stderr, "remote is left out") || !strings.Contains(stdout, "no byte of the payload is copied") {
		t.Errorf("without a server: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, _ = kvtier(t, "bench", "advise", "--gbps", "1.2")
	if code != exitOK || !strings.Contains(stdout, "Qwen2.5-72B") || !strings.Contains(stdout, shippedV2) {
		t.Errorf("all models: exit code %d\n%s", code, stdout)
	}
	if strings.Contains(stdout, "\x1b[") {
		t.Error("a table has colours")
	}
}
