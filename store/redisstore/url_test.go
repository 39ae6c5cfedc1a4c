package redisstore

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseURL(t *testing.T) {
	for url, want := range map[string]Options{
		"redis://localhost":                   {Addrs: []string{"localhost"}},
		"redis://h:1/0":                       {Addrs: []string{"h:1"}},
		"REDIS://h/":                          {Addrs: []string{"h"}},
		"redis://u:p%40ss@[::1]:6380":         {Username: "u", Password: "p@ss", Addrs: []string{"[::1]:6380"}},
		"redis://:p@ss/w@h":                   {Password: "p@ss/w", Addrs: []string{"h"}},
		"unix:///run/redis.sock":              {Addrs: []string{"/run/redis.sock"}},
		"unix://u:p@/run/redis.sock":          {Username: "u", Password: "p", Addrs: []string{"/run/redis.sock"}},
		"redis+cluster://a:1,b,[::1]:3":       {Mode: Cluster, Addrs: []string{"a:1", "b", "[::1]:3"}},
		"redis+cluster://a":                   {Mode: Cluster, Addrs: []string{"a"}},
		"redis+sentinel://u:p@a,b:2/mymaster": {Mode: Sentinel, Username: "u", Password: "p", Addrs: []string{"a", "b:2"}, MasterName: "mymaster"},
	} {
		got, err := ParseURL(url)
		if err != nil {
			t.Errorf("ParseURL(%q): %v", url, err)
		} else if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("ParseURL(%q) (-want +got):\n%s", url, d)
		}
	}
	for _, url := range []string{"rediss://h", "rediss+cluster://h", "rediss+sentinel://h/m"} {
		if o, err := ParseURL(url); err != nil || o.TLS == nil {
			t.Errorf("ParseURL(%q): TLS %v, %v", url, o.TLS, err)
		}
	}
}

func TestParseURLErrors(t *testing.T) {
	for url, want := range map[string]string{
		"":                           "no scheme",
		"localhost:6379":             "no scheme",
		"http://h":                   "unknown scheme",
		"redis+foo://h":              "unknown mode",
		"unix+cluster:///s":          "unknown scheme",
		"unix://run/redis.sock":      "not absolute",
		"redis://":                   "not host",
		"redis://h:port":             "not a number",
		"redis://h:99999":            "not a number",
		"redis://h/3":                "database 0",
		"redis://a,b":                "+cluster",
		"redis+cluster://a,,b":       "not host",
		"redis+sentinel://a":         "master's name",
		"redis://h?db=3":             "query",
		"redis://user@h":             "without a password",
		"redis://u:hunter2@h/7":      "database 0",
		"redis://u:hunter2%zz@h":     "percent-encoded",
		"redis://u:hunter2#x@h":      "percent-encode",
		"redis://hunter2@h":          "without a password",
		"redis://h?password=hunter2": "query",
	} {
		_, err := ParseURL(url)
		switch {
		case err == nil:
			t.Errorf("ParseURL(%q) gives no error", url)
		case !strings.Contains(err.Error(), want):
			t.Errorf("ParseURL(%q): %v, want %q in it", url, err, want)
		case !strings.Contains(err.Error(), "valid forms:"):
			t.Errorf("ParseURL(%q): %v does not show the valid forms", url, err)
		case strings.Contains(err.Error(), "hunter2"):
			t.Errorf("ParseURL(%q) tells the password: %v", url, err)
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("redis://u:", "@h:1/0")
	f.Add("redis://:", "@h?x=1")
	f.Add("", "@h")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "hunter2hunter2"
		if !strings.HasPrefix(after, "@") || strings.Contains(before+after, secret) {
			t.Skip()
		}
		if got := Redact(before + secret + after); strings.Contains(got, secret) {
			t.Errorf("Redact(%q) = %q", before+secret+after, got)
		}
		_, err := ParseURL(before + secret + after)
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("ParseURL tells the password: %v", err)
		}
	})
}

func TestRedact(t *testing.T) {
	for raw, want := range map[string]string{
		"redis://h:1/0":               "redis://h:1/0",
		"redis://u:p@h":               "redis://u:xxxxx@h",
		"redis://:p@ss@h":             "redis://:xxxxx@h",
		"redis://secret@h":            "redis://xxxxx@h",
		"redis+cluster://u:p@a,b:2":   "redis+cluster://u:xxxxx@a,b:2",
		"redis://u:p@h?password=p":    "redis://u:xxxxx@h?xxxxx",
		"redis://u:p?q@h":             "redis://u:xxxxx@h",
		"u:p@h":                       "u:xxxxx@h",
		"unix://u:p@/run/redis.sock":  "unix://u:xxxxx@/run/redis.sock",
		"redis+sentinel://u:p@a,b/my": "redis+sentinel://u:xxxxx@a,b/my",
	} {
		if got := Redact(raw); got != want {
			t.Errorf("Redact(%q) = %q, want %q", raw, got, want)
		}
	}
}
