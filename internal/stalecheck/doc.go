// Package stalecheck runs kvtier against the worst day of its life, deterministically, and checks that nothing stale is served.
//
// Real are: worker.Replica with its requests and swaps, tiered.Cache with its hot tier, fills and spills, codec's frames, block's
// hashes and keys, the worker's adoption of control records, the coordinator's transitions and reconciliation. Simulated are:
// time, Redis, messages, and the engine, whose K/V says what computed it. Everything runs on one goroutine; whenever real code
// calls out (to the store, to the engine, to wait), any other event may happen first. Redis flushes, evicts, goes back to a
// snapshot, loses, delays, duplicates and reorders writes, flips bits, cuts values short, forges lengths, and puts values under
// each other's keys. Equal options give equal runs.
//
// What is checked is listed in Invariants. What is not simulated: clocks that go back or stand still (coordinator's
// TestSuspendedClock), damage that turns a control record into another valid one, and the wire to a real server (package
// integration).
package stalecheck
