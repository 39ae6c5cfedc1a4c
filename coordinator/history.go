package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

const (
	historyPrefix = "kvt1:{ctl}:history:" // list of changes, newest first
	// MaxHistory is how many changes of a model are remembered.
	MaxHistory      = 64
	maxChangeBytes  = 1 << 10
	maxActorBytes   = 64
	whoReconciled   = "coordinator"
	changeReassert  = "reassert"
	changeRepair    = "repair"
	unknownCallerIs = "api"
)

// Change is one entry of a model's history. It is written with the record, in one step, and lost with it: the record, not the history, is
// what everything goes by.
type Change struct {
	At      int64  `json:"at"` // unix ms
	Gen     uint64 `json:"gen"`
	Term    uint64 `json:"term"`
	What    string `json:"what"`              // register, warm, activate, drain, revoke, purge, purge-tenant, repair or reassert
	Version string `json:"version,omitempty"` // as the caller named it; the namespace for purge-tenant, the reason for reassert
	Who     string `json:"who"`               // as the caller named itself; nobody has checked it
	Via     string `json:"via"`               // coordinator that wrote it
}

// History is the answer to GET /v1/models/{name}/history.
type History struct {
	Model   string   `json:"model"`
	Changes []Change `json:"changes"` // newest first
}

// actorKey carries the caller's name for the history.
type actorKey struct{}

// WithActor names who asks for a change, for the history: up to 64 printable characters, the rest is cut off.
func WithActor(ctx context.Context, who string) context.Context {
	who = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, who)
	return context.WithValue(ctx, actorKey{}, who[:min(len(who), maxActorBytes)])
}

func actorOf(ctx context.Context) string {
	if who, _ := ctx.Value(actorKey{}).(string); who != "" {
		return who
	}
	return unknownCallerIs
}

// History reads a model's last changes, newest first. Damaged entries are left out.
func (c *Control) History(ctx context.Context, model string) ([]Change, error) {
	if err := ValidateModel(model); err != nil {
		return nil, err
	}
	raw, err := c.rdb.LRange(ctx, historyPrefix+model, 0, MaxHistory-1).Result()
	if err != nil {
		return nil, fmt.Errorf("coordinator: read history of %s: %w", model, err)
	}
	changes := []Change{}
	for _, s := range raw {
		var ch Change
		if len(s) <= maxChangeBytes && json.Unmarshal([]byte(s), &ch) == nil {
			changes = append(changes, ch)
		}
	}
	return changes, nil
}
