package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/kvtier/kvtier/internal/rawredis"
	"github.com/kvtier/kvtier/store/redisstore"
)

// Errors about the server that a caller can mend by asking for another one, or for less.
var (
	// ErrOneServer means a URL of a cluster or of sentinels: the raw ceiling is that of one server.
	ErrOneServer = errors.New("bench: remote measures one server: give the URL of one node, redis://host:port")
	// ErrNoRoom means that the values would not fit the server's memory, or would push out what others stored.
	ErrNoRoom = errors.New("bench: not enough memory on the server")
)

// Server is what the server says of itself. JSON names are stable.
type Server struct {
	Product   string   `json:"product"`
	Version   string   `json:"version"`
	Allocator string   `json:"allocator"`
	IOThreads int      `json:"io_threads"`
	Policy    string   `json:"maxmemory_policy"`
	MaxMemory int64    `json:"maxmemory_bytes"`
	Used      int64    `json:"used_memory_bytes"`
	Warnings  []string `json:"warnings"`

	url string
	at  redisstore.Options
}

// OpenServer connects to url, asks what it is, and refuses one that holds only part of the keys.
func OpenServer(ctx context.Context, url string) (*Server, error) {
	at, err := redisstore.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if at.Mode != redisstore.Single {
		return nil, ErrOneServer
	}
	s := &Server{url: url, at: at}
	st, err := redisstore.OpenURL(url)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	report, err := st.Check(ctx)
	if err != nil && len(report.Servers) == 0 {
		return nil, err
	}
	s.Warnings = append([]string{}, report.Warnings...)
	if err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	for _, x := range report.Servers {
		s.Product, s.Version, s.Policy, s.MaxMemory = x.Product, x.Version, x.Policy, x.MaxMemoryBytes
	}
	c, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return s, s.inspect(c)
}

// inspect reads what decides about figures.
func (s *Server) inspect(c *rawredis.Conn) error {
	info := map[string]string{}
	for _, section := range []string{"memory", "server", "cluster"} {
		text, err := c.Do("INFO", section)
		if err != nil {
			continue // refused, or a fake: what is unknown is not judged
		}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				info[k] = v
			}
		}
	}
	if info["cluster_enabled"] == "1" {
		return fmt.Errorf("%w (this one is a cluster's: use a server of the same kind that is in no cluster)", ErrOneServer)
	}
	s.Allocator = info["mem_allocator"]
	s.Used, _ = strconv.ParseInt(info["used_memory"], 10, 64)
	s.IOThreads = 1
	if info["io_threads_active"] == "1" {
		s.IOThreads = 2
		s.Warnings = append(s.Warnings, "io-threads is on, which on a machine with few cores costs most of the throughput; measure with io-threads 1 too")
	}
	if info["tcp_port"] == "" && s.Allocator == "" {
		s.Warnings = append(s.Warnings, "the server does not tell what it is (INFO is refused); its settings could not be checked")
	}
	return nil
}

// Room refuses to write bytes that would make the server evict or fail. Half as much again is left for what the allocator adds: jemalloc keeps a value
// of 2 MiB and a header in 2.5 MiB.
func (s *Server) Room(bytes int64) error {
	if s.MaxMemory > 0 && s.Used > 0 && s.Used+bytes+bytes/2 > s.MaxMemory {
		return fmt.Errorf("%w: maxmemory is %d MiB, %d MiB are in use, and the values need %d MiB: lower --data-bytes or raise maxmemory",
			ErrNoRoom, s.MaxMemory>>20, s.Used>>20, (bytes+bytes/2)>>20)
	}
	return nil
}

// dial opens a raw connection, logged in.
func (s *Server) dial(ctx context.Context) (*rawredis.Conn, error) {
	network, addr := "tcp", s.at.Addrs[0]
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	} else if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "6379")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d := net.Dialer{}
	var nc net.Conn
	var err error
	if s.at.TLS != nil {
		nc, err = (&tls.Dialer{NetDialer: &d, Config: s.at.TLS}).DialContext(ctx, network, addr)
	} else {
		nc, err = d.DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	c := rawredis.New(nc)
	if s.at.Password != "" {
		login := []string{"AUTH", s.at.Username, s.at.Password}
		if s.at.Username == "" {
			login = []string{"AUTH", s.at.Password}
		}
		if _, err := c.Do(login...); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("bench: login: %w", err)
		}
	}
	return c, nil
}

// raw opens conns raw connections. They have no deadlines; the end of ctx closes them.
func (s *Server) raw(ctx context.Context, conns int) (*rawredis.Client, error) {
	all := make([]*rawredis.Conn, 0, conns)
	for range conns {
		c, err := s.dial(ctx)
		if err != nil {
			rawredis.NewClient(all...).Close()
			return nil, err
		}
		all = append(all, c)
	}
	cl := rawredis.NewClient(all...)
	context.AfterFunc(ctx, cl.Close)
	return cl, nil
}
