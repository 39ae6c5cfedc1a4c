package redisstore

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kvtier/kvtier/store"
)

// Mode says what the addresses in Options are.
type Mode uint8

const (
	// Single is one server. The zero value.
	Single Mode = iota
	// Cluster is Redis Cluster; the addresses are some of its nodes.
	Cluster
	// Sentinel is a primary with replicas; the addresses are the sentinels that know which one the primary is.
	Sentinel
)

// String returns the mode's name.
func (m Mode) String() string {
	switch m {
	case Single:
		return "single"
	case Cluster:
		return "cluster"
	case Sentinel:
		return "sentinel"
	default:
		return fmt.Sprintf("Mode(%d)", uint8(m))
	}
}

// Options says where the servers are and how much of them one client may use. Zero means the default everywhere; only an
// address is required, either in URL or in Addrs. Database 0 is the only one used, because clusters have no other.
type Options struct {
	// URL is the whole address in one string; see ParseURL for the forms. It excludes Mode, Addrs, MasterName, Username and
	// Password; a rediss URL may be refined by TLS.
	URL string

	// Mode is what Addrs are. Default Single.
	Mode Mode
	// Addrs are host:port, or one absolute path of a Unix socket. Without a port, 6379 (Sentinel: 26379).
	Addrs []string
	// MasterName is the primary's name among the sentinels. Sentinel mode only.
	MasterName string
	// Username and Password log in to the data servers. Empty: no login.
	Username, Password string
	// SentinelUsername and SentinelPassword log in to the sentinels.
	SentinelUsername, SentinelPassword string
	// TLS turns encryption on and configures it. It is not modified.
	TLS *tls.Config

	// Role and ID make the client name, kvtier-<Role>-<ID>, that CLIENT LIST shows. Printable ASCII without spaces. Default:
	// kvtier-store, without an ID.
	Role, ID string

	// PoolSize is the number of connections per node, default 6. They are opened before they are needed, and kept. More do not add
	// throughput; fewer make readers wait.
	PoolSize int
	// DialTimeout bounds one connection attempt, with TLS and login. Default 1 s. Calls do not wait longer than their contexts allow: what
	// they leave is finished in the background for the next.
	DialTimeout time.Duration
	// Timeout bounds one round trip when the context ends later. Default 2 s. It is also how long a call may outlive a context
	// that was cancelled rather than expired, because a reply that is being read cannot be abandoned.
	Timeout time.Duration
	// PoolTimeout bounds the wait for a free connection, which others may still be opening. Default 2 s.
	PoolTimeout time.Duration
	// MaxInFlightBytes bounds the values, by the size of their buffers, that this client is reading at once from one server, over
	// all calls; calls beyond wait. Default 6 MiB: from 7 MiB of replies on, servers with jemalloc 5.3.0 lose half their throughput.
	// Writes, which leave no replies behind, are bounded by two pipelines per server of two thirds of it each.
	MaxInFlightBytes int
	// NodeBreaker configures the breakers that a cluster's nodes have each, and with Hedge every server, replicas too. OnStateChange is called
	// without saying which node it is.
	NodeBreaker store.BreakerOptions
	// Hedge is how long a read may go unanswered before a replica is asked as well, for one read in 20 at most. Zero, the default: never. It
	// should be a few times what a large value takes, or healthy reads spend what slow ones need. Open only: see hedge.go for what is read.
	Hedge time.Duration
	// Replicas are the addresses of the replicas of a Single server, which Hedge needs there; the other modes find theirs. They are reached
	// with the same user, password and TLS.
	Replicas []string
	// TTLJitter is the largest part by which Put lengthens a TTL, so that what was stored together does not expire together.
	// Default 0.1; negative means none; at most 1.
	TTLJitter float64
}

func (o Options) withDefaults() (Options, error) {
	if o.URL != "" {
		if o.Mode != Single || len(o.Addrs) > 0 || o.MasterName != "" || o.Username != "" || o.Password != "" {
			return o, errors.New("URL excludes Mode, Addrs, MasterName, Username and Password")
		}
		at, err := ParseURL(o.URL)
		if err != nil {
			return o, err
		}
		o.URL, o.Mode, o.Addrs, o.MasterName = "", at.Mode, at.Addrs, at.MasterName
		o.Username, o.Password = at.Username, at.Password
		if o.TLS == nil {
			o.TLS = at.TLS
		} else if at.TLS == nil {
			return o, errors.New("TLS is set but URL is not rediss: use a rediss URL")
		}
	}
	port := "6379"
	if o.Mode == Sentinel {
		port = "26379"
	}
	o.Addrs, o.Replicas = withPorts(o.Addrs, port), withPorts(o.Replicas, port)
	setDefault(&o.Role, "store")
	setDefault(&o.PoolSize, 6)
	setDefault(&o.DialTimeout, time.Second)
	setDefault(&o.Timeout, 2*time.Second)
	setDefault(&o.PoolTimeout, 2*time.Second)
	setDefault(&o.MaxInFlightBytes, defaultInFlight)
	setDefault(&o.TTLJitter, 0.1)
	return o, nil
}

func withPorts(addrs []string, port string) []string {
	all := make([]string, len(addrs))
	for i, a := range addrs {
		all[i] = withPort(a, port)
	}
	return all
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate returns all problems of options that have their defaults.
func (o Options) validate() error {
	var problems []error
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	bad(o.Mode > Sentinel, "Mode %d is unknown", o.Mode)
	bad(len(o.Addrs) == 0, "no address: set URL or Addrs")
	bad(o.Mode == Single && len(o.Addrs) > 1, "Addrs has %d entries; more than one needs Mode Cluster or Sentinel", len(o.Addrs))
	for i, a := range o.Addrs {
		bad(a == "", "Addrs[%d] is empty", i)
		bad(strings.HasPrefix(a, "/") && o.Mode != Single, "Addrs[%d] is a Unix socket, which Mode %v does not take", i, o.Mode)
	}
	bad(o.Mode == Sentinel && o.MasterName == "", "MasterName is empty, which Mode Sentinel needs")
	bad(o.Mode != Sentinel && o.MasterName != "", "MasterName is set, which only Mode Sentinel takes")
	bad(o.Username != "" && o.Password == "", "Username is set without Password")
	for name, v := range map[string]string{"Role": o.Role, "ID": o.ID} {
		bad(strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }), "%s %q is not printable ASCII without spaces", name, v)
	}
	bad(o.PoolSize < 0, "PoolSize %d is negative", o.PoolSize)
	bad(o.DialTimeout < 0, "DialTimeout %v is negative", o.DialTimeout)
	bad(o.Timeout < 0, "Timeout %v is negative", o.Timeout)
	bad(o.PoolTimeout < 0, "PoolTimeout %v is negative", o.PoolTimeout)
	bad(o.MaxInFlightBytes < 0, "MaxInFlightBytes %d is negative", o.MaxInFlightBytes)
	bad(o.Hedge < 0, "Hedge %v is negative", o.Hedge)
	bad(o.Hedge > 0 && o.Mode == Single && len(o.Replicas) == 0, "Hedge is set without Replicas, which Mode Single needs for it")
	bad(len(o.Replicas) > 0 && o.Mode != Single, "Replicas is set, which Mode %v does not take: it finds them by itself", o.Mode)
	bad(len(o.Replicas) > 0 && o.Hedge == 0, "Replicas is set without Hedge")
	for i, a := range o.Replicas {
		bad(a == "" || strings.ContainsAny(a, " /@"), "Replicas[%d] is not host or host:port", i) // not repeated: it may be a URL with a password
	}
	bad(o.TTLJitter > 1, "TTLJitter %v is above 1", o.TTLJitter)
	return errors.Join(problems...)
}

// clientName is what CLIENT LIST shows.
func (o Options) clientName() string {
	if o.ID == "" {
		return "kvtier-" + o.Role
	}
	return "kvtier-" + o.Role + "-" + o.ID
}
