package coordinator

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kvtier/kvtier/block"
)

// Limits on a heartbeat.
const (
	MaxHeartbeatBytes = 8 << 10
	maxLoadable       = 32
	maxStats          = 64
	// MaxTenantUses is how many tenants a heartbeat names: those with the most bytes.
	MaxTenantUses = 8
)

// LeaseState says how much a worker's view of the record is worth.
type LeaseState string

// Lease states. A worker starts unsynced; every successful poll makes it leased for T; without one it expires.
const (
	Unsynced LeaseState = "unsynced" // no record was ever adopted: nothing is granted
	Leased   LeaseState = "leased"   // the record was read within the last T
	Expired  LeaseState = "expired"  // it was not: a partition, or Redis went backwards
)

// Info is what a worker says of itself in its heartbeats.
type Info struct {
	Address  string        `json:"address,omitempty"`  // where the worker's API listens
	Variant  block.Variant `json:"variant,omitzero"`   // resident variant, zero while none is
	Label    string        `json:"label,omitempty"`    // label of the resident weights
	Declared bool          `json:"declared,omitempty"` // the weights digest is an operator's word, not computed from bytes
	Loadable []string      `json:"loadable,omitempty"` // labels of weights the worker could load
	// Stats are small numbers for status pages, such as hit rates; names are up to 64 characters.
	Stats map[string]float64 `json:"stats,omitempty"`
	// Tenants are those that take up most, at most MaxTenantUses.
	Tenants []TenantUse `json:"tenants,omitempty"`
}

// TenantUse is what one tenant takes up.
type TenantUse struct {
	Namespace   block.Digest `json:"namespace"`    // zero for all the others together
	HotBytes    int64        `json:"hot_bytes"`    // in memory now
	StoredBytes int64        `json:"stored_bytes"` // written to the remote tier since the worker started, whether or not it has expired
}

// Heartbeat is a worker's sign of life. Gen and Sum acknowledge a record: the worker has acted on it.
type Heartbeat struct {
	Incarnation string `json:"incarnation"` // random, new with every start of the process
	Model       string `json:"model"`
	Info
	Gen     uint64      `json:"gen"`              // generation acted on, 0 if none
	Sum     Sum         `json:"sum,omitempty"`    // its content
	Epoch   block.Epoch `json:"epoch,omitzero"`   // highest epoch ever seen
	Refused uint64      `json:"refused,omitzero"` // generation now in Redis, if it was refused
	State   LeaseState  `json:"state"`
	Problem string      `json:"problem,omitempty"` // why the record in Redis is not adopted
}

func (h Heartbeat) validate() error {
	short := func(s string) bool { return len(s) <= 256 }
	switch {
	case ValidateModel(h.Model) != nil || validateName("incarnation", h.Incarnation) != nil:
		return fmt.Errorf("%w: heartbeat: bad model or incarnation", ErrInvalid)
	case !short(h.Address) || !short(h.Label) || !short(h.Problem) || !short(string(h.Sum)):
		return fmt.Errorf("%w: heartbeat: a text is too long", ErrInvalid)
	case len(h.Loadable) > maxLoadable || !every(slices.Values(h.Loadable), short):
		return fmt.Errorf("%w: heartbeat: too many loadable versions, or too long", ErrInvalid)
	case len(h.Stats) > maxStats || !every(maps.Keys(h.Stats), short):
		return fmt.Errorf("%w: heartbeat: too many stats, or names too long", ErrInvalid)
	case len(h.Tenants) > MaxTenantUses || !every(slices.Values(h.Tenants), TenantUse.valid):
		return fmt.Errorf("%w: heartbeat: too many tenants, or bytes out of range", ErrInvalid)
	// Half the range: a coordinator must be able to go beyond what any worker claims to have seen.
	case h.Gen > MaxNumber/2 || h.Refused > MaxNumber || h.Epoch > MaxNumber/2:
		return fmt.Errorf("%w: heartbeat: gen %d, epoch %d: out of range", ErrInvalid, h.Gen, h.Epoch)
	case h.State != Unsynced && h.State != Leased && h.State != Expired:
		return fmt.Errorf("%w: heartbeat: unknown state %.20q", ErrInvalid, h.State)
	}
	return nil
}

func (u TenantUse) valid() bool {
	return u.HotBytes >= 0 && u.HotBytes <= MaxNumber && u.StoredBytes >= 0 && u.StoredBytes <= MaxNumber
}

func every[T any](seq func(func(T) bool), ok func(T) bool) bool {
	for x := range seq {
		if !ok(x) {
			return false
		}
	}
	return true
}
