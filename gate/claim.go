package gate

import "time"

// Claim is what a request estimates about blocks that no tier has, and that another worker may be computing.
type Claim struct {
	Compute time.Duration // to compute them here
	Load    time.Duration // to load them, if they were stored
	RTT     time.Duration // of one question to the remote tier
}

const (
	// claimLeast is the shortest computation that is worth a claim, and claimPerRTT how many times longer than a question it has to be: the
	// question costs everybody who computes something new.
	claimLeast  = 40 * time.Millisecond
	claimPerRTT = 100
	// claimIdle is the part of the time to compute for which a request may wait with its hands in its lap; that much is lost when the other
	// worker dies.
	claimIdle = 0.2
)

// Pays reports whether the blocks are worth the question who computes them.
func (c Claim) Pays() bool { return c.Compute >= claimLeast && c.Compute >= claimPerRTT*c.RTT }

// Expected is when whoever begins to compute now will have stored the blocks: storing takes about as long as loading.
func (c Claim) Expected() time.Duration { return c.Compute + c.Load }

// Await decides what to do about blocks that another worker has claimed, age ago, and means to have stored by expected after that. ok says
// whether they will be here sooner than computed: in α of that time. Then the request may wait for idle with nothing else to do, and gives
// them up after until.
func (c Claim) Await(expected, age time.Duration) (idle, until time.Duration, ok bool) {
	left := expected - age
	if age < 0 || left < -expected/2 || float64(max(0, left)+c.Load) > loadShare*float64(c.Compute) {
		return 0, 0, false // of another release, long overdue, or later than what is computed here
	}
	if most := time.Duration(claimIdle * float64(c.Compute)); left < most {
		idle = most
	}
	return idle, c.Compute, true
}
