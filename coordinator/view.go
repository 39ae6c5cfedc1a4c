package coordinator

import (
	"fmt"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/internal/mutation"
)

// OnExpiry says what a worker does with its entries when its lease has expired.
type OnExpiry string

// What to do without a lease.
const (
	// Local goes on with the entries last granted: a partition costs nothing, but a revocation waits for its end.
	Local OnExpiry = "local"
	// Strict stops using the cache until the record was read again: a revocation takes effect within the lease.
	Strict OnExpiry = "strict"
)

// ParseOnExpiry reads "local" or "strict".
func ParseOnExpiry(s string) (OnExpiry, error) {
	if o := OnExpiry(s); o == Local || o == Strict {
		return o, nil
	}
	return "", fmt.Errorf("%w: on-expiry is %.20q, want local or strict", ErrInvalid, s)
}

// Grant is the permission to use a variant's entries of one activation. Grants are comparable: entries that were fetched under one may
// be used only if the same grant still holds at hand-over.
type Grant struct {
	Epoch block.Epoch
	Act   Act
}

// View is what a worker knows of its model's record at one moment. It is immutable and cheap to copy.
type View struct {
	Model string
	Gen   uint64 // 0 while unsynced
	Sum   Sum
	// State is the worth of the view at the moment it was taken; LeaseUntil is when Leased ends unless renewed.
	State      LeaseState
	LeaseUntil time.Time
	// Problem says why the last poll did not renew the lease: Redis unreachable, record missing, damaged, or going
	// backwards. "" if it did.
	Problem string

	versions []Version
	cuts     map[block.Digest]block.Cut
}

// Cuts returns the last purge of every purged tenant, by namespace. The caller may keep the map, not change it.
func (v View) Cuts() map[block.Digest]block.Cut { return v.cuts }

func cutsOf(r Record) map[block.Digest]block.Cut {
	cuts := make(map[block.Digest]block.Cut, len(r.Tenants))
	for ns, t := range r.Tenants {
		cuts[ns] = t.Cut
	}
	return cuts
}

// Versions lists every variant of the record, newest activation first. The caller may keep it, not change it.
func (v View) Versions() []Version { return v.versions }

// Active lists the active versions, newest activation first.
func (v View) Active() []Version {
	var active []Version
	for _, x := range v.versions {
		if x.State == Active {
			active = append(active, x)
		}
	}
	return active
}

// Version returns what the record says of a variant.
func (v View) Version(variant block.Variant) (Version, bool) {
	i := slices.IndexFunc(v.versions, func(x Version) bool { return x.Variant == variant })
	if i < 0 {
		return Version{}, false
	}
	return v.versions[i], true
}

// Grant returns the grant of a variant: its entry is warming, active or draining. It does not look at the lease; see Usable.
func (v View) Grant(variant block.Variant) (Grant, bool) {
	for i := range v.versions {
		if x := &v.versions[i]; x.Variant == variant && (x.State.Live() || mutation.Is(mutation.RevokedGranted)) {
			return Grant{x.Epoch, x.Act}, true
		}
	}
	return Grant{}, false
}

// Usable returns the grant of a variant if it may be used now: under Strict only with a lease.
func (v View) Usable(variant block.Variant, on OnExpiry) (Grant, bool) {
	if v.State == Unsynced || v.State == Expired && on != Local {
		return Grant{}, false
	}
	return v.Grant(variant)
}
