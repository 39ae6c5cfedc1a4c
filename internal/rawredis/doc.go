// Package rawredis is a yardstick, not a client: the least that one can do to move values between Redis and memory. It writes
// requests by hand and reads replies straight into the caller's buffers, a few in flight, with no pool, no deadline, no routing
// and no recovery: after any error a connection is useless. What it reaches is the ceiling that measurements of the real
// client are divided by, in the same run; nothing but benchmarks may import it.
package rawredis
