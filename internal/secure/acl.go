package secure

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Role is who connects to Redis.
type Role string

// The roles. All but Admin are held to what they need.
const (
	// Worker reads and writes blocks of K/V, reads control records, and writes its own heartbeat. It cannot list keys.
	Worker Role = "worker"
	// Coordinator writes control records, and deletes blocks without reading them.
	Coordinator Role = "coordinator"
	// Dashboard reads sizes, settings and control records, and neither blocks nor heartbeats of anybody; it writes nothing.
	Dashboard Role = "dashboard"
	// Admin may do everything: it takes the place of the user default, which is off.
	Admin Role = "admin"
)

// Roles are all roles, in the order of the file.
func Roles() []Role { return []Role{Worker, Coordinator, Dashboard, Admin} }

// Rules by role. Nothing is allowed but what is named: categories such as @read grow with every release of the server. Every command here
// is known to Redis 7.0 and Valkey 8, so that one file suits all later ones; a server refuses to start with a name it does not know. What
// concerns all is followed by selectors in parentheses, which tie commands to keys. AUTH, HELLO and QUIT need no rule.
var rules = map[Role][]string{
	Worker: {
		everybody, cluster, "&kvt1:{ctl}:inv +subscribe +unsubscribe",
		"+multi +exec +unwatch",
		"(~kvt1:d:* +get +set +exists +strlen +unlink +watch +persist +pexpire)", // blocks; the last two pin and unpin, a transaction discards
		"(~kvt1:l:* +get +set +pttl +unlink)",                                    // claims on blocks that are being computed
		"(%R~kvt1:{ctl}:model:* +getrange)",
		"(~kvt1:{ctl}:w:* +set +del)",
		"(~kvt1:{ctl}:workers +zadd +zrem)",
	},
	Coordinator: {
		everybody, cluster, "&kvt1:{ctl}:inv +publish",
		"+scan", // names only, which is what reclaim goes by
		"(~kvt1:d:* +strlen +unlink)",
		"(~kvt1:{ctl}:* +eval +evalsha +multi +exec +get +getrange +set +del +pttl +pexpire +sadd +srem +sscan +lpush +ltrim +lrange +zadd +zrem +zrevrange +hget +hgetall +hset +hdel)",
	},
	Dashboard: {
		everybody, cluster, "+dbsize +scan +latency|latest +latency|history +slowlog|get +slowlog|len",
		"(%R~kvt1:* +strlen +exists +ttl +pttl +memory|usage)",
		"(%R~kvt1:{ctl}:model:* %R~kvt1:{ctl}:history:* %R~kvt1:{ctl}:workers %R~kvt1:{ctl}:models +getrange +lrange +zrevrange +sscan)",
	},
	Admin: {"allkeys allchannels +@all"},
}

const (
	everybody = "+ping +hello +client|setname +info"
	// how a client finds its way in a cluster; it learns addresses and slots
	cluster = "+command +cluster|slots +cluster|shards +cluster|nodes +readonly +asking"
)

// ACL returns the content of the server's aclfile: a user for each role with its password, which is not in it, only its digest. The user
// default, as which everybody begins, is off.
func ACL(passwords map[Role]string) (string, error) {
	var b strings.Builder
	b.WriteString("user default off\n")
	for _, role := range Roles() {
		p := passwords[role]
		if len(p) < 16 {
			return "", fmt.Errorf("secure: password of %s: %d characters, want at least 16", role, len(p))
		}
		digest := sha256.Sum256([]byte(p))
		fmt.Fprintf(&b, "user %s on #%s resetkeys resetchannels -@all %s\n", role, hex.EncodeToString(digest[:]), strings.Join(rules[role], " "))
	}
	return b.String(), nil
}
