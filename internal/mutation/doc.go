// Package mutation seeds protocol bugs, one at a time, into builds with the tag kvtier_mutations, to measure whether the checks
// of this project notice them. In any other build [Is] is a constant false that the compiler removes together with what it
// guards: internal/stalecheck has a test that looks for the names in a plain binary.
package mutation

// Name names a seeded bug.
type Name string

// The seeded bugs. Each says what the protocol would have forgotten.
const (
	None                Name = ""
	SkipIdentity        Name = "codec: no comparison of the header's identity"
	SkipWeightsDigest   Name = "codec: no comparison of the weights digest"
	SkipChecksum        Name = "codec: no payload checksum"
	TrustStoredLength   Name = "codec: the stored length is trusted"
	Tenantless          Name = "block: tenant not in the root hash"
	LabelAtDequeue      Name = "tiered: spills labelled when they leave the queue"
	FlightWithoutGen    Name = "tiered: fills shared across generations"
	LateInsert          Name = "tiered: a late fill becomes hot"
	KeepHot             Name = "tiered: hot blocks survive a change of generation"
	EarlyReuse          Name = "tiered: an evicted block's memory is reused while it is read"
	IgnoreLease         Name = "tiered: access does not end with the lease"
	PublishPartial      Name = "tiered: what a failed read left in the buffer is served"
	NumberOnly          Name = "coordinator: epochs compared by number, without the act"
	LeaseFromReply      Name = "coordinator: the lease counts from the reply"
	NoPollOnSubscribe   Name = "coordinator: no poll after a new subscription"
	GoBack              Name = "coordinator: a generation that goes back is adopted"
	Resurrect           Name = "coordinator: a grant from before a purge is adopted again"
	ReuseEpoch          Name = "coordinator: an activation gets the epoch of the one before"
	EagerReclaim        Name = "coordinator: reclaim before acknowledgement, one pass"
	RevokedGranted      Name = "coordinator: a revoked variant is still granted"
	TrustRollback       Name = "coordinator: what Redis has lost is not written again"
	AckBeforeAct        Name = "coordinator: a generation is acknowledged before it is acted on"
	SwapWithoutDraining Name = "worker: weights swapped under running requests"
	SwapKeepsView       Name = "worker: the cache's view survives a swap"
	NoRecheck           Name = "tiered: no comparison before K/V counts"
)

// All lists the seeded bugs.
func All() []Name {
	return []Name{
		SkipIdentity, SkipWeightsDigest, SkipChecksum, TrustStoredLength, Tenantless, LabelAtDequeue, FlightWithoutGen,
		LateInsert, KeepHot, EarlyReuse, IgnoreLease, PublishPartial, NumberOnly, LeaseFromReply,
		NoPollOnSubscribe, GoBack, Resurrect, ReuseEpoch, EagerReclaim, RevokedGranted, TrustRollback, AckBeforeAct,
		SwapWithoutDraining, SwapKeepsView, NoRecheck,
	}
}
