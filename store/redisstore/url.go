package redisstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// forms is what an error about a URL ends with.
const forms = `valid forms: redis://[user:password@]host[:port], rediss://… (TLS), unix://[user:password@]/path/to.sock, ` +
	`redis+cluster://host1[:port],host2…, rediss+cluster://…, redis+sentinel://host1[:port],host2…/master, rediss+sentinel://…`

// ParseURL turns a URL into the fields Mode, Addrs, MasterName, Username, Password and TLS of Options. The forms are
//
//	redis://user:password@host:6379             one server
//	unix://user:password@/run/redis.sock        one server, Unix socket
//	redis+cluster://host1:6379,host2:6379       Redis Cluster
//	redis+sentinel://host1:26379,host2/master   the primary that Sentinel calls master
//
// and the same with rediss instead of redis for TLS. User and password are optional and percent-encoded; ports default to 6379
// and 26379. A database other than 0 and query parameters are refused: settings belong into Options. Errors name what
// is wrong and never contain the password.
func ParseURL(raw string) (Options, error) {
	o, err := parseURL(raw)
	if err != nil {
		return Options{}, fmt.Errorf("redis URL %q: %w; %s", Redact(raw), err, forms)
	}
	return o, nil
}

func parseURL(raw string) (Options, error) {
	var o Options
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return o, errors.New("no scheme")
	}
	if strings.ContainsAny(rest, "?#") {
		return o, errors.New("query parameters and fragments are not accepted (percent-encode ? and # in a password)")
	}
	scheme, mode, _ := strings.Cut(strings.ToLower(scheme), "+")
	switch {
	case scheme == "rediss":
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	case scheme != "redis" && scheme != "unix", scheme == "unix" && mode != "":
		return o, errors.New("unknown scheme")
	}
	switch mode {
	case "":
	case "cluster":
		o.Mode = Cluster
	case "sentinel":
		o.Mode = Sentinel
	default:
		return o, fmt.Errorf("unknown mode after the plus sign")
	}

	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		var err error
		if o.Username, o.Password, err = parseUser(rest[:i]); err != nil {
			return o, err
		}
		rest = rest[i+1:]
	}
	if scheme == "unix" {
		if !strings.HasPrefix(rest, "/") || rest == "/" {
			return o, errors.New("the socket's path is not absolute")
		}
		o.Addrs = []string{rest}
		return o, nil
	}
	hosts, path, _ := strings.Cut(rest, "/")
	switch {
	case o.Mode == Sentinel && (path == "" || strings.Contains(path, "/")):
		return o, errors.New("the master's name must follow the hosts")
	case o.Mode == Sentinel:
		o.MasterName = path
	case path != "" && path != "0":
		return o, errors.New("only database 0 is used")
	}
	for host := range strings.SplitSeq(hosts, ",") {
		if err := checkHost(host); err != nil {
			return o, err
		}
		o.Addrs = append(o.Addrs, host)
	}
	if o.Mode == Single && len(o.Addrs) > 1 {
		return o, errors.New("several hosts need +cluster or +sentinel after the scheme")
	}
	return o, nil
}

func parseUser(info string) (user, password string, err error) {
	u, p, found := strings.Cut(info, ":")
	if user, err = url.PathUnescape(u); err != nil {
		return "", "", errors.New("the user name is not percent-encoded")
	}
	if password, err = url.PathUnescape(p); err != nil {
		return "", "", errors.New("the password is not percent-encoded")
	}
	if !found || password == "" {
		return "", "", errors.New("a user without a password before @ (write :password@ if there is no user)")
	}
	return user, password, nil
}

func checkHost(host string) error {
	h, port, err := net.SplitHostPort(withPort(host, "6379"))
	if err != nil || h == "" || strings.ContainsAny(h, " /@") {
		return fmt.Errorf("%q is not host or host:port", host)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || strings.Trim(port, "0123456789") != "" {
		return fmt.Errorf("the port of %q is not a number up to 65535", host)
	}
	return nil
}

// withPort adds a port to an address that has none. Paths of Unix sockets stay as they are.
func withPort(addr, port string) string {
	if addr == "" || strings.HasPrefix(addr, "/") {
		return addr
	}
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), port)
}

// Redact returns raw, a URL valid or not, fit for logs: without the password and without any query. What is doubtful is hidden.
func Redact(raw string) string {
	at := strings.LastIndexByte(raw, '@')
	if i := strings.IndexAny(raw[at+1:], "?#"); i >= 0 {
		raw = raw[:at+1+i] + "?xxxxx"
	}
	if at < 0 {
		return raw
	}
	scheme, user := "", raw[:at]
	if s, u, ok := strings.Cut(user, "://"); ok && !strings.ContainsAny(s, ":@") {
		scheme, user = s+"://", u
	}
	name, _, found := strings.Cut(user, ":")
	if !found || strings.ContainsAny(name, "@/?#") { // a password whose user was forgotten looks like a user
		return scheme + "xxxxx" + raw[at:]
	}
	return scheme + name + ":xxxxx" + raw[at:]
}

// Hosts returns the host names or addresses in a URL, without ports: those that a server's certificate has to be valid for.
func Hosts(raw string) ([]string, error) {
	o, err := ParseURL(raw)
	if err != nil {
		return nil, err
	}
	hosts := make([]string, len(o.Addrs))
	for i, a := range o.Addrs {
		host, _, err := net.SplitHostPort(withPort(a, "6379"))
		if err != nil {
			return nil, fmt.Errorf("redis URL %q: a socket has no host", Redact(raw))
		}
		hosts[i] = host
	}
	return hosts, nil
}

// WithUser returns raw with another user and password.
func WithUser(raw, user, password string) (string, error) {
	if _, err := ParseURL(raw); err != nil {
		return "", err
	}
	scheme, rest, _ := strings.Cut(raw, "://")
	return scheme + "://" + url.UserPassword(user, password).String() + "@" + rest[strings.LastIndexByte(rest, '@')+1:], nil
}
