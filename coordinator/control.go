package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Names in Redis. The hash tag keeps all of them in one slot of a cluster, so that scripts may touch several.
const (
	recordPrefix = "kvt1:{ctl}:model:"
	beatPrefix   = "kvt1:{ctl}:w:"
	workersKey   = "kvt1:{ctl}:workers" // sorted set: incarnation by the time of its last heartbeat
	modelsKey    = "kvt1:{ctl}:models"  // set of model names
	hintChannel  = "kvt1:{ctl}:inv"     // "<model> <gen>", only a hint to poll

	maxWorkers = 4096 // heartbeats read for one status
	maxModels  = 4096
)

// Control reads and writes control records and heartbeats in Redis. It is safe for concurrent use; every method is bounded by its
// context and by the client's time-outs.
type Control struct {
	rdb redis.UniversalClient
}

// NewControl uses rdb, which the caller made (redisstore.Connect) and closes. It should be a client of its own: control must not
// queue behind payloads.
func NewControl(rdb redis.UniversalClient) *Control { return &Control{rdb: rdb} }

// Stored is a record as it was read: raw is what a compare-and-set has to find again.
type Stored struct {
	Record
	raw []byte
}

// Sum names the content.
func (s Stored) Sum() Sum { return sumOf(s.raw) }

// Load reads a model's record: ErrNoModel if there is none, ErrRecord if it is damaged. Raw bytes are returned in every case, so that
// even a damaged record can be replaced by compare-and-set.
func (c *Control) Load(ctx context.Context, model string) (Stored, error) {
	return c.load(ctx, model, nil)
}

// load is Load, without decoding a record anew that is the one read last: decoding is most of what a request costs.
func (c *Control) load(ctx context.Context, model string, last *Stored) (Stored, error) {
	if err := ValidateModel(model); err != nil {
		return Stored{}, err
	}
	// One byte more than allowed tells a long value from a full one; the rest of it is never read.
	raw, err := c.rdb.GetRange(ctx, recordPrefix+model, 0, MaxRecordBytes).Bytes()
	if err != nil {
		return Stored{}, fmt.Errorf("coordinator: read record of %s: %w", model, err)
	}
	if len(raw) == 0 {
		return Stored{}, fmt.Errorf("%w: %s", ErrNoModel, model)
	}
	if last != nil && bytes.Equal(raw, last.raw) {
		return *last, nil
	}
	r, err := DecodeRecord(model, raw)
	if err != nil {
		return Stored{raw: raw}, fmt.Errorf("%w (model %s)", err, model)
	}
	return Stored{Record: r, raw: raw}, nil
}

// casScript replaces a record if it still is what was read. It compares everything that a reader reads; a missing record is "". What only a
// leader may write carries its lease, which must still stand. KEYS: record, models, lease, history. ARGV: old, new, model, cap, lease
// or "", history entry or "".
var casScript = redis.NewScript(`
if ARGV[5] ~= '' and redis.call('GETRANGE', KEYS[3], 0, 128) ~= ARGV[5] then return -1 end
if redis.call('GETRANGE', KEYS[1], 0, tonumber(ARGV[4])) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
if ARGV[6] ~= '' then
  redis.pcall('LPUSH', KEYS[4], ARGV[6])
  redis.pcall('LTRIM', KEYS[4], 0, 63)
end
return 1`)

// Swap writes next if the stored bytes are still those of prev, which the zero Stored says are none: ErrConflict otherwise. After any other
// error the write may have happened: read again.
func (c *Control) Swap(ctx context.Context, prev Stored, next Record) (Stored, error) {
	raw, err := next.Encode()
	if err != nil {
		return Stored{}, err
	}
	return c.swap(ctx, prev, Stored{Record: next, raw: raw}, "", nil)
}

// swap is Swap under the leader's lease, if fence is not "", which fails with ErrDeposed if the lease does not stand any more; and with an entry
// for the history, if change is not nil.
func (c *Control) swap(ctx context.Context, prev, next Stored, fence string, change *Change) (Stored, error) {
	entry := ""
	if change != nil {
		b, err := json.Marshal(change)
		if err != nil {
			return Stored{}, fmt.Errorf("%w: history: %w", ErrInvalid, err)
		}
		entry = string(b)
	}
	ok, err := casScript.Run(ctx, c.rdb, []string{recordPrefix + next.Model, modelsKey, leaseKey, historyPrefix + next.Model},
		prev.raw, next.raw, next.Model, MaxRecordBytes, fence, entry).Int()
	switch {
	case err != nil:
		return Stored{}, fmt.Errorf("coordinator: write record of %s: %w", next.Model, err)
	case ok < 0:
		return Stored{}, fmt.Errorf("%w (model %s)", ErrDeposed, next.Model)
	case ok == 0:
		return Stored{}, fmt.Errorf("%w (model %s)", ErrConflict, next.Model)
	}
	return next, nil
}

// Hint tells workers to poll. Losing it costs them one poll interval.
func (c *Control) Hint(ctx context.Context, model string, gen uint64) error {
	return c.rdb.Publish(ctx, hintChannel, model+" "+strconv.FormatUint(gen, 10)).Err()
}

// parseHint reads what Hint publishes; ok is false for anything else.
func parseHint(payload string) (model string, gen uint64, ok bool) {
	model, num, found := strings.Cut(payload, " ")
	gen, err := strconv.ParseUint(num, 10, 64)
	return model, gen, found && err == nil && gen <= MaxNumber && ValidateModel(model) == nil
}

// Models lists the names of all models that have a record, sorted.
func (c *Control) Models(ctx context.Context) ([]string, error) {
	var names []string
	for cursor := uint64(0); len(names) < maxModels; {
		some, next, err := c.rdb.SScan(ctx, modelsKey, cursor, "", 256).Result()
		if err != nil {
			return nil, fmt.Errorf("coordinator: list models: %w", err)
		}
		for _, n := range some {
			if ValidateModel(n) == nil {
				names = append(names, n)
			}
		}
		if cursor = next; cursor == 0 {
			break
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Ping asks Redis for a sign of life.
func (c *Control) Ping(ctx context.Context) error { return c.rdb.Ping(ctx).Err() }

// Forget removes a model's record. Coordinators that remember it write it again, and workers keep their last view: stop both first.
func (c *Control) Forget(ctx context.Context, model string) error {
	if err := ValidateModel(model); err != nil {
		return err
	}
	if _, err := c.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Del(ctx, recordPrefix+model, historyPrefix+model)
		p.SRem(ctx, modelsKey, model)
		return nil
	}); err != nil {
		return fmt.Errorf("coordinator: forget %s: %w", model, err)
	}
	return nil
}
