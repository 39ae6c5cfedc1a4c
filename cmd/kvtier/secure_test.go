package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecureKeepsWhatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "redis")
	secure := func(args ...string) string {
		t.Helper()
		code, out, stderr := kvtier(t, append([]string{"secure", dir}, args...)...)
		if code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		return out
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if out := secure("--redis", "rediss://cache"); strings.Count(out, "\n") != 13 {
		t.Errorf("made %s", out)
	}
	for name, mode := range map[string]os.FileMode{"ca-key.pem": 0o600, "server-key.pem": 0o600, "users.acl": 0o600, "worker-redis.url": 0o600, "ca.pem": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if out := secure("--redis", "rediss://cache"); out != "" {
		t.Errorf("a second run made %s", out)
	}
	ca, acl := read("ca.pem"), read("users.acl")
	if out := secure("--redis", "rediss://cache", "--control-redis", "rediss://control"); !strings.Contains(out, "server.pem (not valid for control)") {
		t.Errorf("with another host it made %s", out)
	}
	if read("ca.pem") != ca || read("users.acl") != acl || !strings.HasPrefix(read("worker-control-redis.url"), "rediss://worker:") {
		t.Error("the authority or a password changed")
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-key.pem"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"rubbish for a key": {"secure", dir, "--redis", "rediss://other"},
		"socket":            {"secure", dir, "--redis", "unix:///x"},
		"no URL":            {"secure", dir, "--redis", "cache:6379"},
		"no directory":      {"secure"},
		"too short":         {"secure", dir, "--valid", "24h"},
	} {
		if code, _, stderr := kvtier(t, args...); code != exitUsage {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
	}
}

func TestFlagsComeFromFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "value")
	t.Setenv("KVTIER_WRITE_POLICY_FILE", file)
	for content, want := range map[string]string{"": "is empty", "sometimes\n": "through"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := kvtier(t, "worker"); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, %s; want %q", code, stderr, want)
		}
	}
	t.Setenv("KVTIER_WRITE_POLICY", "through")
	if code, _, stderr := kvtier(t, "worker"); code != exitUsage || !strings.Contains(stderr, "both set") {
		t.Errorf("both: exit code %d, %s", code, stderr)
	}
	t.Setenv("KVTIER_WRITE_POLICY", "")
	t.Setenv("KVTIER_WRITE_POLICY_FILE", file+".none")
	if code, _, stderr := kvtier(t, "worker"); code != exitUsage || !strings.Contains(stderr, "KVTIER_WRITE_POLICY_FILE") {
		t.Errorf("missing file: exit code %d, %s", code, stderr)
	}
	t.Setenv("KVTIER_WRITE_POLICY_FILE", "")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KVTIER_HOT_BYTES_FILE", file)
	if code, _, stderr := kvtier(t, "worker"); code != exitUsage || strings.Contains(stderr, "hunter2") {
		t.Errorf("what does not fit: exit code %d, %s", code, stderr)
	}
}
