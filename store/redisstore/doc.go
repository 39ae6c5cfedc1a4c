// Package redisstore is the store.Store on Redis and Valkey: one server, a cluster, or a primary that Sentinel names.
//
// Values travel as plain SET … PX and GET, never through Lua, MGET or automatic pipelining, and replies land in the
// caller's memory without a copy in between. Clients fail fast and retry nothing: above a cache, an answer that comes late is
// worth less than a miss, and the breaker (store.WithBreaker) decides when to ask again.
//
// Invariants: every key is named in a command of its own, so that a cluster routes it; at most Options.MaxInFlightBytes of
// values are on the wire to one server for one Store; nothing reads or writes a caller's buffer after the call that lent it has ended;
// no error and no log line carries a password.
package redisstore
