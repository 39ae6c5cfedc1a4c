package secure_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/internal/secure"
)

func TestCertificatesAreTrustedForTheirHostsAlone(t *testing.T) {
	year := time.Now().AddDate(1, 0, 0)
	authority, err := secure.NewAuthority(year)
	if err != nil {
		t.Fatal(err)
	}
	server, err := secure.NewServer(authority, []string{"redis", "10.0.0.1"}, year)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(server.Cert, server.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Cert)
	for host, want := range map[string]bool{"redis": true, "10.0.0.1": true, "redis2": false, "10.0.0.2": false} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots}); (err == nil) != want {
			t.Errorf("%s: %v", host, err)
		}
	}
	other, err := secure.NewAuthority(year)
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().AddDate(0, 1, 0)
	for name, tt := range map[string]struct {
		server, authority secure.Pair
		hosts             []string
		end               time.Time
		want              string
	}{
		"as it should be":   {server, authority, []string{"redis"}, soon, ""},
		"another host":      {server, authority, []string{"valkey"}, soon, "not valid for valkey"},
		"about to end":      {server, authority, nil, year.AddDate(0, 1, 0), "ends on"},
		"another authority": {server, other, nil, soon, "another authority"},
		"another's key":     {secure.Pair{Cert: server.Cert, Key: other.Key}, authority, nil, soon, "the key is another one's"},
		"rubbish":           {secure.Pair{Cert: []byte("x"), Key: []byte("y")}, authority, nil, soon, "not a certificate"},
	} {
		if got := secure.Outdated(tt.server, tt.authority, tt.hosts, tt.end); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: outdated because %q, want %q", name, got, tt.want)
		}
	}
	if _, err := secure.NewServer(secure.Pair{Cert: authority.Cert, Key: other.Key}, []string{"x"}, year); !errors.Is(err, secure.ErrPair) {
		t.Errorf("signed with a key that is not the authority's: %v", err)
	}
}

func TestACLHoldsDigestsOnly(t *testing.T) {
	passwords := map[secure.Role]string{}
	for _, r := range secure.Roles() {
		passwords[r] = "a password for " + string(r)
	}
	acl, err := secure.ACL(passwords)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(acl, "a password") || !strings.HasPrefix(acl, "user default off\n") || strings.Count(acl, "\n") != 1+len(passwords) {
		t.Errorf("access list:\n%s", acl)
	}
	passwords[secure.Worker] = "short"
	if _, err := secure.ACL(passwords); err == nil {
		t.Error("a password of five characters was accepted")
	}
}
