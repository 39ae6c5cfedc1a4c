package coordinator

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Limits on a control record. They bound what a hostile or broken Redis can make a reader do, and they keep the
// largest valid record below MaxRecordBytes.
const (
	MaxRecordBytes = 80 << 10
	MaxVariants    = 96
	MaxDead        = 192
	MaxTenants     = 64
	MaxLabelBytes  = 64
	// MaxNumber bounds generations, epochs, terms and times: exact in every JSON reader, and never near overflow.
	MaxNumber = 1 << 53
)

// State is what may be done with the entries of a variant.
type State string

// States of a variant. A worker is granted warming, active and draining variants only.
const (
	Registered State = "registered" // known, never activated
	Warming    State = "warming"    // as active, but nobody swaps to it: its entries are stored before it serves
	Active     State = "active"     // entries are read and written
	Draining   State = "draining"   // as active, but on its way out: warm nothing new for it
	Revoked    State = "revoked"    // entries must not be used; coming back takes a new epoch
)

// Live reports whether entries of a variant in this state may be used.
func (s State) Live() bool { return s == Warming || s == Active || s == Draining }

// rank orders states by how much they take away; reconciliation prefers the more restrictive.
func (s State) rank() int {
	return slices.Index([]State{Registered, Warming, Active, Draining, Revoked}, s)
}

// Act names one activation: 128 random bits. Epoch numbers can be given out twice when Redis loses a write; together with
// the act they cannot.
type Act [16]byte

func (a Act) String() string { return hex.EncodeToString(a[:]) }

// IsZero reports whether a is unset.
func (a Act) IsZero() bool { return a == Act{} }

// MarshalText encodes a as 32 hex digits.
func (a Act) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText decodes 32 hex digits.
func (a *Act) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(a)) {
		return fmt.Errorf("coordinator: act has %d characters, want %d hex digits", len(text), hex.EncodedLen(len(a)))
	}
	_, err := hex.Decode(a[:], text)
	return err
}

// Entry is what a record says of one variant.
type Entry struct {
	Label   string       `json:"label"` // the operator's name for the weights; not unique, never identity
	Weights block.Digest `json:"weights"`
	Layout  block.Digest `json:"layout"`
	// Declared says that the weights digest is an operator's word and was not computed from the bytes that are loaded.
	Declared bool  `json:"declared,omitzero"`
	State    State `json:"state"`
	// Epoch and Act are set while the state is live, and zero otherwise.
	Epoch block.Epoch `json:"epoch,omitzero"`
	Act   Act         `json:"act,omitzero"`
	Since int64       `json:"since"` // unix ms of the last change of State or Epoch
	Gen   uint64      `json:"gen"`   // generation of the last change: the later one wins when two records are merged
}

// Identity returns the full digests.
func (e Entry) Identity() block.Identity { return block.Identity{Weights: e.Weights, Layout: e.Layout} }

// Dead is an epoch whose entries are unreachable and still have to be deleted. It stays in the record until the second pass,
// so that reclaim survives a crash of the coordinator.
type Dead struct {
	Variant block.Variant `json:"variant"`
	Epoch   block.Epoch   `json:"epoch"`
	Gen     uint64        `json:"gen"`            // generation that killed it
	Since   int64         `json:"since"`          // unix ms
	Swept   int64         `json:"swept,omitzero"` // unix ms of the first pass, 0 before it
}

// TenantCut is the last purge of one tenant. It stays until the whole model is purged: only then can nothing from before it be reached.
type TenantCut struct {
	Cut   block.Cut `json:"cut"`   // mixed into the root of the tenant's chains
	Gen   uint64    `json:"gen"`   // generation of the purge
	Since int64     `json:"since"` // unix ms
}

// Record is the control record of one model. It is a value: transitions return a changed copy.
type Record struct {
	V     int    `json:"v"` // format; a reader refuses any but recordFormat
	Model string `json:"model"`
	Gen   uint64 `json:"gen"`  // grows with every write
	Term  uint64 `json:"term"` // highest term of leadership under which it was ever written; a leader of a lower one must not
	// LastEpoch is the highest epoch ever given out for this model, whether or not its variant is still listed.
	LastEpoch block.Epoch `json:"last_epoch"`
	// Cut is the last generation that took a grant away: a purge or revocation is complete when every worker has seen it.
	Cut      uint64                  `json:"cut,omitzero"`
	CutAt    int64                   `json:"cut_at,omitzero"` // unix ms
	Variants map[block.Variant]Entry `json:"variants"`
	Dead     []Dead                  `json:"dead,omitempty"`
	// Tenants holds the last purge of every purged tenant by namespace digest: the salt itself never leaves the workers.
	Tenants map[block.Digest]TenantCut `json:"tenants,omitempty"`
}

const recordFormat = 1

// NewRecord returns the empty record of a model, before its first write.
func NewRecord(model string) Record {
	return Record{V: recordFormat, Model: model, Variants: map[block.Variant]Entry{}}
}

// Version is an entry together with its variant.
type Version struct {
	Variant block.Variant `json:"variant"`
	Entry
}

// Versions lists all variants: live ones first, newest activation first; then by the last change, newest first.
func (r Record) Versions() []Version {
	vs := make([]Version, 0, len(r.Variants))
	for v, e := range r.Variants {
		vs = append(vs, Version{v, e})
	}
	slices.SortFunc(vs, func(a, b Version) int {
		if a.Epoch != b.Epoch { // only live entries have an epoch
			if a.Epoch > b.Epoch {
				return -1
			}
			return 1
		}
		if a.Since != b.Since {
			if a.Since > b.Since {
				return -1
			}
			return 1
		}
		return slices.Compare(a.Variant[:], b.Variant[:])
	})
	return vs
}

func (r Record) clone() Record {
	r.Variants = maps.Clone(r.Variants)
	if r.Variants == nil {
		r.Variants = map[block.Variant]Entry{}
	}
	r.Dead, r.Tenants = slices.Clone(r.Dead), maps.Clone(r.Tenants)
	return r
}

// ValidateLabel reports whether s can be a version's label: 1 to 64 of [A-Za-z0-9._:/@+-].
func ValidateLabel(s string) error {
	if len(s) < 1 || len(s) > MaxLabelBytes {
		return fmt.Errorf("%w: label has %d characters, want 1 to %d", ErrInvalid, len(s), MaxLabelBytes)
	}
	for _, c := range []byte(s) {
		if !nameByte(c) && c != ':' && c != '/' && c != '@' && c != '+' {
			return fmt.Errorf("%w: label %q: only letters, digits and '.', '_', '-', ':', '/', '@', '+' are allowed", ErrInvalid, s)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// Validate reports everything that a record must not be. A record that passes can be used without further checks.
func (r Record) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.V != recordFormat {
		return fmt.Errorf("%w: format %d, want %d", ErrRecord, r.V, recordFormat)
	}
	if err := ValidateModel(r.Model); err != nil {
		bad("model: %v", err)
	}
	if len(r.Variants) > MaxVariants || len(r.Dead) > MaxDead || len(r.Tenants) > MaxTenants {
		bad("%d variants, %d dead epochs and %d purged tenants, at most %d, %d and %d",
			len(r.Variants), len(r.Dead), len(r.Tenants), MaxVariants, MaxDead, MaxTenants)
	}
	for ns, t := range r.Tenants {
		if ns.IsZero() || t.Cut.IsZero() || t.Gen == 0 || t.Gen > r.Gen || !validMillis(t.Since) {
			bad("purge of tenant %s: out of range", ns.Short())
		}
	}
	if r.Gen == 0 || r.Gen > MaxNumber || r.Term > MaxNumber || r.LastEpoch > MaxNumber || r.Cut > r.Gen || !validMillis(r.CutAt) {
		bad("gen %d, term %d, last epoch %d, cut %d at %d: out of range", r.Gen, r.Term, r.LastEpoch, r.Cut, r.CutAt)
	}
	live := make(map[place]bool, len(r.Variants))
	for _, v := range slices.SortedFunc(maps.Keys(r.Variants), func(a, b block.Variant) int { return slices.Compare(a[:], b[:]) }) {
		e := r.Variants[v]
		if err := e.validate(v, r); err != nil {
			bad("variant %v: %v", v, err)
		}
		live[place{v, e.Epoch}] = true
	}
	for _, d := range r.Dead {
		p := place{d.Variant, d.Epoch}
		switch {
		case d.Epoch == 0 || d.Epoch > r.LastEpoch || d.Gen > r.Gen || !validMillis(d.Since) || !validMillis(d.Swept):
			bad("dead epoch %d of %v: out of range", d.Epoch, d.Variant)
		case live[p]: // also finds duplicates
			bad("dead epoch %d of %v is live or listed twice", d.Epoch, d.Variant)
		}
		live[p] = true
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return nil
}

// place is where entries are stored: half of their keys.
type place struct {
	variant block.Variant
	epoch   block.Epoch
}

func (e Entry) validate(v block.Variant, r Record) error {
	switch {
	case e.Weights.IsZero() || e.Layout.IsZero():
		return errors.New("a digest is missing")
	case e.Identity().Variant() != v:
		return errors.New("its digests belong to another variant")
	case e.State.rank() < 0:
		return fmt.Errorf("unknown state %.20q", e.State)
	case e.State.Live() && (e.Epoch == 0 || e.Epoch > r.LastEpoch || e.Act.IsZero()):
		return fmt.Errorf("%s with epoch %d of %d, act %v", e.State, e.Epoch, r.LastEpoch, e.Act)
	case !e.State.Live() && (e.Epoch != 0 || !e.Act.IsZero()):
		return fmt.Errorf("%s and yet with epoch %d", e.State, e.Epoch)
	case e.Gen == 0 || e.Gen > r.Gen || !validMillis(e.Since):
		return fmt.Errorf("gen %d, since %d: out of range", e.Gen, e.Since)
	}
	return ValidateLabel(e.Label)
}

func validMillis(ms int64) bool { return ms >= 0 && ms <= MaxNumber }

// millis is how the record writes a time.
func millis(t time.Time) int64 { return min(max(t.UnixMilli(), 0), MaxNumber) }
