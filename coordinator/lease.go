package coordinator

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	leaseKey = "kvt1:{ctl}:lease" // "<term> <owner>", expires
	termKey  = "kvt1:{ctl}:term"  // last term given out, kept for a day after the last renewal

	// DefaultLeadership is how long a coordinator leads after it last renewed; it renews three times in that span.
	DefaultLeadership = 10 * time.Second
	maxLeadership     = time.Minute
	maxLeaseBytes     = 128
)

// leadership is what a coordinator knows of the lease on leadership. It is a value and pure: the moment and what Redis said come
// from outside.
//
// Redis' clock ends the lease for everybody else, this machine's for the holder. The holder counts from before it sent the request that
// was granted, so that it stops before Redis lets somebody else in, however long request and reply were under way. A holder that is
// paused longer than the lease finds it over when it looks. That it may be paused between looking and writing is why the script
// that writes a record compares the lease once more (see Control.swap), and why the term stands in the record.
type leadership struct {
	owner string
	term  uint64    // of the lease we hold or held, 0 if none
	sent  time.Time // when the last request that was granted was sent
	other string    // who leads instead, as of the last answer
	floor uint64    // highest term seen anywhere
}

// heard takes in an answer to a request that was sent at some moment: the holder of the lease after it.
func (l leadership) heard(h holder, sent time.Time) leadership {
	l.floor = max(l.floor, h.term)
	if h.owner == l.owner {
		l.term, l.sent, l.other = h.term, sent, ""
		return l
	}
	return l.lost(h.owner)
}

// lost steps down: somebody else leads, or may do so.
func (l leadership) lost(to string) leadership {
	l.term, l.sent, l.other = 0, time.Time{}, to
	return l
}

// leads reports whether the lease holds at a moment. The monotonic clock stands still while a machine is suspended and the wall clock may be
// stepped: whichever has advanced further counts, and a wall clock stepped back is none to go by.
func (l leadership) leads(now time.Time, ttl time.Duration) bool {
	wall := now.Round(0).Sub(l.sent.Round(0))
	return l.term != 0 && now.Sub(l.sent) < ttl && wall < ttl
}

// fence is what the lease's key holds while l leads.
func (l leadership) fence() string { return holder{l.term, l.owner}.String() }

// holder is the content of the lease.
type holder struct {
	term  uint64
	owner string
}

func (h holder) String() string { return strconv.FormatUint(h.term, 10) + " " + h.owner }

func parseHolder(s string) (holder, error) {
	num, owner, _ := strings.Cut(s, " ")
	term, err := strconv.ParseUint(num, 10, 64)
	if err != nil || term == 0 || term > MaxNumber || validateName("owner", owner) != nil {
		return holder{}, fmt.Errorf("%w: lease %.64q", ErrRecord, s)
	}
	return holder{term, owner}, nil
}

// leaseScript takes the lease if it is free, renews it if it is the caller's, and returns who holds it. What does not look like a lease, or
// would outlive any, is one that nobody holds. KEYS: lease, term. ARGV: owner, TTL in ms, lowest term, longest TTL in ms.
var leaseScript = redis.NewScript(`
local cur = redis.call('GETRANGE', KEYS[1], 0, 128)
local term, owner = string.match(cur, '^(%d+) ([%w._-]+)$')
local left = redis.call('PTTL', KEYS[1])
if term and #term <= 16 and left > 0 and left <= tonumber(ARGV[4]) then
  if owner ~= ARGV[1] then return cur end
  if tonumber(term) >= tonumber(ARGV[3]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[2], 86400000)
    return cur
  end
end
local last = redis.call('GETRANGE', KEYS[2], 0, 17)
last = string.match(last, '^%d+$') and #last <= 15 and tonumber(last) or 0
local next = string.format('%.0f', math.max(last, tonumber(ARGV[3])) + 1)
local won = next .. ' ' .. ARGV[1]
redis.call('SET', KEYS[2], next, 'PX', 86400000)
redis.call('SET', KEYS[1], won, 'PX', ARGV[2])
return won`)

// releaseScript gives the lease back if it still is the caller's.
var releaseScript = redis.NewScript(`
if redis.call('GETRANGE', KEYS[1], 0, 128) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0`)

// campaign takes or renews the lease and returns who holds it afterwards.
func (c *Control) campaign(ctx context.Context, l leadership, ttl time.Duration) (holder, error) {
	got, err := leaseScript.Run(ctx, c.rdb, []string{leaseKey, termKey},
		l.owner, ttl.Milliseconds(), l.floor, maxLeadership.Milliseconds()).Text()
	if err != nil {
		return holder{}, fmt.Errorf("coordinator: lease: %w", err)
	}
	return parseHolder(got)
}

// resign lets others lead at once.
func (c *Control) resign(ctx context.Context, l leadership) error {
	return releaseScript.Run(ctx, c.rdb, []string{leaseKey}, l.fence()).Err()
}

// leader reads who leads, for status: "" if nobody does.
func (c *Control) leader(ctx context.Context) (holder, error) {
	got, err := c.rdb.GetRange(ctx, leaseKey, 0, maxLeaseBytes).Result()
	if err != nil || got == "" {
		return holder{}, err
	}
	h, err := parseHolder(got)
	if err != nil {
		return holder{}, nil //nolint:nilerr // the next campaign replaces it
	}
	return h, nil
}
