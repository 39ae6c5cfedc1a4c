package worker

// Latched reports whether an exchange of weights, or Close, waits for running requests or has begun: no request gets an engine.
func (r *Replica) Latched() bool {
	if !r.latch.TryAcquire(1) {
		return true
	}
	r.latch.Release(1)
	return false
}
