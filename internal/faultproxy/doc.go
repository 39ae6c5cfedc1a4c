// Package faultproxy stands between a client and its server and does to their traffic what bad networks do: delay it, throttle it, lose it,
// stop it, cut it off in the middle of a value, flip its bits. Tests, kvtier bench faults and kvtier chaos put it in front of Redis.
//
// It is not toxiproxy, whose bandwidth is per connection where a link's is shared by all, which cannot flip bits, and whose HTTP interface
// obeys everybody. Faults change while connections live: what is under way when one ends goes on as if the network had healed.
//
// Invariants: without a fault every byte arrives once, in order; memory is bounded per connection; Close leaves no goroutine behind.
package faultproxy
