package integration

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/internal/testredis"
	"github.com/kvtier/kvtier/store/redisstore"
)

// secured is a server with TLS and an access list, as kvtier secure sets it up.
type secured struct {
	t    *testing.T
	dir  string
	addr string
}

func startSecured(t *testing.T, image string) *secured {
	t.Helper()
	s := &secured{t: t, dir: t.TempDir()}
	kvtier(t, "secure", s.dir, "--redis", "rediss://127.0.0.1:1")
	s.addr = testredis.StartSecured(t, image, map[string][]byte{
		"server.pem": s.read("server.pem"), "server-key.pem": s.read("server-key.pem"), "ca.pem": s.read("ca.pem"), "users.acl": s.read("users.acl"),
	})
	before := s.read("server.pem")
	kvtier(t, "secure", s.dir, "--redis", "rediss://"+s.addr) // the port is known only now; certificate and passwords stay
	if string(before) != string(s.read("server.pem")) {
		t.Error("the second run made another certificate")
	}
	return s
}

func (s *secured) read(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// env is how a role is told where its server is and whom to trust.
func (s *secured) env(role string) []string {
	return []string{
		"SSL_CERT_FILE=" + filepath.Join(s.dir, "ca.pem"),
		"KVTIER_REDIS_FILE=" + filepath.Join(s.dir, role+"-redis.url"),
	}
}

func (s *secured) launch(role string, args ...string) *process {
	s.t.Helper()
	path, err := binary()
	if err != nil {
		s.t.Fatal(err)
	}
	return launch(s.t, path, s.env(role), append([]string{role}, args...)...)
}

// as is a client with a role's user.
func (s *secured) as(role string) *redis.Client {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.read("ca.pem"))
	c, err := redisstore.Connect(redisstore.Options{
		URL: strings.TrimSpace(string(s.read(role + "-redis.url"))), TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c.(*redis.Client)
}

// Closed to everybody else, on both products: coordinator and workers do all that they do with the rights of their roles, which the server's
// own log of refusals confirms, and with none of them anything else.
func TestRolesCanDoTheirWorkAndNothingElse(t *testing.T) {
	for _, image := range []string{testredis.Image(), testredis.ValkeyImage} {
		t.Run(image, func(t *testing.T) {
			s := startSecured(t, image)
			g := startGroup(t, s.launch)
			g.drill()
			refused, err := s.as("admin").ACLLog(t.Context(), 100).Result()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range refused {
				t.Errorf("%s was refused %s %s: %v", r.Username, r.Context, r.Object, r.ClientInfo)
			}
			s.refusals(t)
		})
	}
}

// refusals tries what each role must not do.
func (s *secured) refusals(t *testing.T) {
	everybody := []string{
		"flushall", "flushdb", "keys *", "config get maxmemory", "config set maxmemory 1", "shutdown nosave", "acl list", "acl whoami",
		"client list", "client kill type normal", "monitor", "save", "bgsave", "replicaof no one", "script flush", "function list", "module list",
		"set other 1", "get other", "rename kvt1:d:a other", "dump kvt1:d:a", "restore kvt1:d:a 0 x", "migrate h 1 kvt1:d:a 0 1", "sort kvt1:{ctl}:models",
		"publish other x", "subscribe other", "psubscribe *", "mget kvt1:d:a other", "copy kvt1:d:a other",
	}
	for role, more := range map[string][]string{
		"worker": {
			"scan 0", "eval return(0) 0", "publish kvt1:{ctl}:inv x", "set kvt1:{ctl}:model:m x", "getrange kvt1:{ctl}:w:a 0 9", "get kvt1:{ctl}:lease",
			"unlink kvt1:{ctl}:model:m", "set kvt1:{ctl}:lease x", "append kvt1:d:a x", "expire kvt1:d:a 1", "dbsize",
		},
		"coordinator": {"get kvt1:d:a", "set kvt1:d:a x", "getrange kvt1:d:a 0 9", "exists kvt1:d:a", "script load x", "eval return(redis.call('get','kvt1:d:a')) 1 kvt1:d:a"},
		"dashboard": {
			"get kvt1:d:a", "getrange kvt1:d:a 0 9", "set kvt1:d:a x", "unlink kvt1:d:a", "del kvt1:{ctl}:model:m", "set kvt1:{ctl}:model:m x",
			"getrange kvt1:{ctl}:w:a 0 9", "zadd kvt1:{ctl}:workers 1 a", "eval return(0) 0", "publish kvt1:{ctl}:inv x", "slowlog reset", "latency reset",
		},
	} {
		c := s.as(role)
		for _, line := range append(more, everybody...) {
			if err := c.Do(t.Context(), words(line)...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") &&
				!strings.Contains(err.Error(), "ACL failure in script") {
				t.Errorf("%s may run %s: %v", role, line, err)
			}
		}
	}
	for _, line := range []string{"info memory", "dbsize", "scan 0", "strlen kvt1:d:a", "memory usage kvt1:d:a", "getrange kvt1:{ctl}:model:shakespeare 0 9"} {
		if err := s.as("dashboard").Do(t.Context(), words(line)...).Err(); err != nil && !errors.Is(err, redis.Nil) {
			t.Errorf("the dashboard may not run %s: %v", line, err)
		}
	}
	stranger := redis.NewClient(&redis.Options{Addr: s.addr, TLSConfig: s.as("admin").Options().TLSConfig, MaxRetries: -1})
	defer stranger.Close()
	if err := stranger.Ping(t.Context()).Err(); err == nil || !strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("a client without a user is told %v, want NOAUTH", err)
	}
}

func words(line string) []any {
	var all []any
	for w := range strings.FieldsSeq(line) {
		all = append(all, w)
	}
	return all
}
