package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/internal/secure"
	"github.com/kvtier/kvtier/store/redisstore"
)

const (
	authorityYears = 10
	renewBefore    = 30 * 24 * time.Hour
)

type secureFlags struct {
	redis, controlRedis string
	hosts               []string
	valid               time.Duration
}

func newSecure() *cobra.Command {
	var f secureFlags
	cmd := &cobra.Command{
		Use:   "secure DIRECTORY",
		Short: "Make the certificates and the access list that close a Redis to everybody else",
		Long: `secure writes, for one Redis or for one of data and one of control:

  ca.pem, ca-key.pem          an authority; clients trust ca.pem (SSL_CERT_FILE)
  server.pem, server-key.pem  the server's certificate, for the hosts in the URLs and --host
  users.acl                   users worker, coordinator, dashboard and admin, each with what it needs; default is off
  ROLE-redis.url, ROLE-control-redis.url   addresses with passwords, for KVTIER_REDIS_FILE and KVTIER_CONTROL_REDIS_FILE

Run again it keeps authority and passwords, and replaces the server's certificate when it ends within 30 days or lacks a host. Redis reads
the new one after CONFIG SET tls-cert-file or a restart. Whoever has ca-key.pem can impersonate the server: keep it elsewhere.`,
		Example: `  kvtier secure /etc/kvtier/redis --redis rediss://redis.internal:6379
  redis-server data.conf --aclfile users.acl --port 0 --tls-port 6379 --tls-cert-file server.pem --tls-key-file server-key.pem \
    --tls-ca-cert-file ca.pem --tls-auth-clients no
  SSL_CERT_FILE=ca.pem KVTIER_REDIS_FILE=worker-redis.url kvtier worker`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, a []string) error {
			made, err := f.run(a[0])
			for _, m := range made {
				fmt.Fprintln(cmd.OutOrStdout(), m)
			}
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.redis, "redis", "rediss://127.0.0.1:6379", "`URL` of the shared tier, without user and password")
	fl.StringVar(&f.controlRedis, "control-redis", "", "`URL` of the server with the control records (default: --redis)")
	fl.StringSliceVar(&f.hosts, "host", nil, "further `name` or address of the servers; repeat for more")
	fl.DurationVar(&f.valid, "valid", 365*24*time.Hour, "how long the server's certificate is valid")
	return cmd
}

// run returns a line for each file that it has written.
func (f *secureFlags) run(dir string) (made []string, err error) {
	if f.controlRedis == "" {
		f.controlRedis = f.redis
	}
	hosts := slices.Concat([]string{}, f.hosts)
	for flag, url := range map[string]string{"--redis": f.redis, "--control-redis": f.controlRedis} {
		names, err := redisstore.Hosts(url)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
		}
		hosts = append(hosts, names...)
	}
	hosts = append(hosts, "localhost", "127.0.0.1")
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	if f.valid <= renewBefore {
		return nil, usagef("--valid %v: want more than the %v before its end at which it is replaced", f.valid, renewBefore)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, usageError{err}
	}
	w := folder{dir: dir}
	defer func() { made = w.made }()
	if err := w.certificates(hosts, f.valid); err != nil {
		return nil, err
	}
	return nil, w.users(f.redis, f.controlRedis)
}

// folder is where the files go.
type folder struct {
	dir  string
	made []string
}

func (w *folder) certificates(hosts []string, valid time.Duration) error {
	authority, err := w.pair("ca")
	if errors.Is(err, fs.ErrNotExist) {
		if authority, err = secure.NewAuthority(time.Now().AddDate(authorityYears, 0, 0)); err == nil {
			err = w.writePair("ca", authority, "new authority")
		}
	}
	if err != nil {
		return err
	}
	server, err := w.pair("server")
	why := "new"
	switch {
	case err == nil:
		why = secure.Outdated(server, authority, hosts, time.Now().Add(renewBefore))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if why == "" {
		return nil
	}
	if server, err = secure.NewServer(authority, hosts, time.Now().Add(valid)); err != nil {
		return usageError{fmt.Errorf("%s: %w", filepath.Join(w.dir, "ca.pem"), err)}
	}
	return w.writePair("server", server, why)
}

// users writes the access list and the addresses. Passwords are those of the addresses that are there.
func (w *folder) users(data, control string) error {
	passwords := map[secure.Role]string{}
	for _, role := range secure.Roles() {
		old, err := os.ReadFile(w.path(string(role) + "-redis.url"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return usageError{err}
		}
		passwords[role] = rand.Text() + rand.Text()
		if o, err := redisstore.ParseURL(string(bytes.TrimSpace(old))); err == nil && o.Username == string(role) {
			passwords[role] = o.Password
		}
		for name, url := range map[string]string{"-redis.url": data, "-control-redis.url": control} {
			full, err := redisstore.WithUser(url, string(role), passwords[role])
			if err == nil {
				err = w.write(string(role)+name, []byte(full+"\n"), 0o600, "address")
			}
			if err != nil {
				return err
			}
		}
	}
	acl, err := secure.ACL(passwords)
	if err != nil {
		return usageError{err}
	}
	return w.write("users.acl", []byte(acl), 0o600, "access list")
}

func (w *folder) path(name string) string { return filepath.Join(w.dir, name) }

func (w *folder) pair(name string) (p secure.Pair, err error) {
	if p.Cert, err = os.ReadFile(w.path(name + ".pem")); err != nil {
		return p, usageError{err}
	}
	if p.Key, err = os.ReadFile(w.path(name + "-key.pem")); err != nil {
		return p, usageError{err}
	}
	return p, nil
}

func (w *folder) writePair(name string, p secure.Pair, why string) error {
	if err := w.write(name+"-key.pem", p.Key, 0o600, why); err != nil {
		return err
	}
	return w.write(name+".pem", p.Cert, 0o644, why)
}

// write replaces a file as a whole, unless it is the same already.
func (w *folder) write(name string, content []byte, mode fs.FileMode, what string) error {
	if old, err := os.ReadFile(w.path(name)); err == nil && bytes.Equal(old, content) {
		return nil
	}
	next := w.path(name + ".new")
	if err := os.WriteFile(next, content, mode); err != nil {
		return err
	}
	if err := os.Rename(next, w.path(name)); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	w.made = append(w.made, fmt.Sprintf("%s (%s)", w.path(name), what))
	return nil
}
