// Package coordinator owns the versions of models and takes K/V away when weights change.
//
// What is allowed for a model stands in one small control record in Redis: which variants (weights in a layout) are active and
// under which epoch their entries are stored. A [Coordinator] changes the record by compare-and-set, publishes a hint,
// waits until workers have seen it and then reclaims the entries of dead epochs. A worker's [Watch] polls the record,
// holds a lease on what it read and acknowledges by heartbeat. A [Client] speaks the coordinator's HTTP API.
//
// That no K/V of other weights is ever used does not depend on any of this: weights and layout are part of every
// key and of every value's header. The record bounds how long revoked or purged entries may still be used, and garbage.
//
// Invariants kept here:
//
//   - the generation of a record only grows; a worker refuses one that goes backwards or that changed its content;
//   - an epoch is given out once: no pair (variant, epoch) is ever live under two activations, and none comes back;
//   - whatever Redis loses or brings back, a coordinator that remembers a later state writes it again, with a higher
//     generation; several coordinators can only conflict, never corrupt, since every write compares all the bytes it read;
//   - only the holder of the lease reconciles and reclaims, and its writes are refused once the lease is gone;
//   - with a state file, a record is on disk before it is in Redis;
//   - everything read from Redis is hostile input: capped before it is read, validated before it is used.
//
// The core (record.go, transition.go, reconcile.go, leadership in lease.go, Salvage) is pure: no goroutines, clocks, sockets or randomness.
package coordinator
