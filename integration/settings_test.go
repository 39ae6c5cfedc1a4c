package integration

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/secure"
	"github.com/kvtier/kvtier/internal/testredis"
)

// Never blocks: a Redis that is badly set up is named in one line, and requests are answered all the same.
func TestBadRedisIsNamedAndServedWithout(t *testing.T) {
	one := func(args ...string) func(*testing.T) (string, []string) {
		return func(t *testing.T) (string, []string) {
			return "redis://" + testredis.StartImage(t, testredis.DefaultImage, args...), nil
		}
	}
	for name, tt := range map[string]struct {
		server   func(*testing.T) (url string, env []string)
		line     string
		degraded bool
	}{
		"no maxmemory":        {one("--maxmemory-policy", "volatile-lfu"), "maxmemory is not set", false},
		"allkeys":             {one("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"), "unsafe maxmemory-policy", true},
		"password":            {one("--requirepass", "secret"), "check user and password", true},
		"rights too tight":    {tooTight, "not allowed", true},
		"expired certificate": {expired, "certificate has expired", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			url, env := tt.server(t)
			w := launch(t, path, env, "worker", "--redis", url)
			w.await("named in the log", 20*time.Second, func() bool { return strings.Contains(w.log.String(), tt.line) })
			w.complete(speech)
			if status := w.status(); (status == "degraded") != tt.degraded {
				t.Errorf("status %s, log:\n%s", status, w.log.String())
			}
			lines := 0
			for line := range strings.Lines(w.log.String()) {
				if strings.Contains(line, tt.line) && strings.Contains(line, `"msg":"redis `) {
					lines++
				}
			}
			if lines != 1 {
				t.Errorf("%d lines about it:\n%s", lines, w.log.String())
			}
		})
	}
}

// tooTight is a server whose user may read and not write.
func tooTight(t *testing.T) (string, []string) {
	addr := testredis.StartImage(t, testredis.DefaultImage, "--maxmemory", "64mb", "--maxmemory-policy", "volatile-lfu")
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	if err := c.ACLSetUser(t.Context(), "reader", "on", ">password", "~*", "+get", "+exists", "+ping", "+info", "+client|setname").Err(); err != nil {
		t.Fatal(err)
	}
	return "redis://reader:password@" + addr, nil
}

// expired is a server whose certificate was good until an hour ago.
func expired(t *testing.T) (string, []string) {
	authority, err := secure.NewAuthority(time.Now().AddDate(1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := secure.NewServer(authority, []string{"127.0.0.1"}, time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, authority.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // until the client hangs up, which it does on seeing the certificate
				_, _ = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}()
		}
	}()
	return "rediss://" + l.Addr().String(), []string{"SSL_CERT_FILE=" + ca}
}

// What cannot work ends at once with code 2 and one line that says why.
func TestSettingsThatCannotWorkEndWithOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env, args []string
		want      string
	}{
		{nil, []string{"worker", "--listen", taken.Addr().String()}, "address already in use"},
		{nil, []string{"coordinator", "--listen", taken.Addr().String()}, "address already in use"},
		{[]string{"KVTIER_REDIS=localhost:6379"}, []string{"worker"}, "valid forms"},
		{[]string{"KVTIER_HOT_BYTES=much"}, []string{"worker"}, "KVTIER_HOT_BYTES"},
		{[]string{"KVTIER_REDIS_FILE=/none/redis.url"}, []string{"worker"}, "KVTIER_REDIS_FILE"},
		{[]string{"KVTIER_COORDINATOR=http://127.0.0.1:1"}, []string{"worker"}, "--redis"},
		{[]string{"KVTIER_LISTEN=:0"}, []string{"coordinator"}, "--insecure"},
		{[]string{"KVTIER_STATE=/none/state.json"}, []string{"coordinator"}, "/none"},
	} {
		cmd := exec.Command(path, tt.args...)
		cmd.Env = tt.env
		out, err := cmd.CombinedOutput()
		var said strings.Builder
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "kvtier: ") {
				said.WriteString(line)
			}
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != 2 || strings.Count(said.String(), "\n") != 1 || !strings.Contains(said.String(), tt.want) {
			t.Errorf("%v %v: %v, want exit status 2 and one line with %q:\n%s", tt.env, tt.args, err, tt.want, out)
		}
	}
}
