package stalecheck

import "fmt"

// Invariant is one thing that must hold at every moment of a run.
type Invariant struct {
	Name string `json:"name"`
	Text string `json:"text"`
	// Checks is how often it was compared in a run.
	Checks int64 `json:"checks"`
}

// The invariants, in the order of Invariants.
const (
	iWeights = iota
	iPrefix
	iTenant
	iActivation
	iStrict
	iRevoked
	iGeneration
	iRevival
	iEpoch
	iLease
	iBounds
	iReclaim
	iDrain
	iStable
	iShared
	iHeals
	invariants
)

var texts = [invariants]string{
	iWeights:    "K/V that is used was computed by the resident weights",
	iPrefix:     "and for exactly this prefix, position and part, with no bit changed",
	iTenant:     "and for the same tenant",
	iActivation: "and under the activation (epoch and act) that the worker holds now",
	iStrict:     "a strict worker uses nothing after its lease has ended",
	iRevoked:    "a worker that has adopted a revocation uses nothing of that variant",
	iGeneration: "on a worker the generation never goes back and never changes its content",
	iRevival:    "an activation that a worker has seen end is never granted to it again",
	iEpoch:      "every activation gets an epoch above all before it, and every record written is valid",
	iLease:      "a lease ends at most T after Redis was read",
	iBounds:     "hot tier, spill queue and fills stay within their bounds",
	iReclaim:    "reclaim waits for acknowledgement or T, touches no live epoch, and passes twice, T apart",
	iDrain:      "weights are not exchanged or closed under a running request",
	iStable:     "a block's bytes do not change while a request reads them",
	iShared:     "the remote tier is read and written only under a lease",
	iHeals:      "when faults end, every worker follows the record again, and hits come back",
}

// Invariants lists what is checked, I1 to In.
func Invariants() []Invariant {
	all := make([]Invariant, invariants)
	for i := range all {
		all[i] = Invariant{Name: fmt.Sprintf("I%d", i+1), Text: texts[i]}
	}
	return all
}

// Violation is a broken invariant and how to see it again.
type Violation struct {
	Invariant string   `json:"invariant"`
	Text      string   `json:"text"`
	Detail    string   `json:"detail"`
	Seed      uint64   `json:"seed"`
	Episode   int      `json:"episode"`
	Op        int      `json:"op"`
	Faults    []string `json:"faults"` // those that are needed for it
	Trace     []string `json:"trace"`  // what happened last, oldest first
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s broken (%s): %s; seed %d, episode %d, operation %d", v.Invariant, v.Text, v.Detail, v.Seed, v.Episode, v.Op)
}
