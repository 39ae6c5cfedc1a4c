package kernel

import "github.com/tphakala/simd/f32"

const (
	// Span is the number of positions whose keys or values of one head lie together, as [headDim][Span]: along positions
	// both products of attention are long vector operations, also for a head of 32 dimensions.
	Span = 256
	// lane is what scores are computed in multiples of: a multiple of every vector length, so that no scalar rest is left.
	lane = 16
)

// ScoreLen is the length of the scratch that attention over n positions needs: a score each, and one head's output.
func ScoreLen(n int) int { return (n+Span-1)/Span*Span + MaxHeadDim }

// Attend writes softmax(q·K)·V over positions 0 to n-1 to out. q is one head's query of len(q) dimensions, already scaled.
// keys and values return the [headDim][Span] plane of the i-th span of positions. scores is scratch of at least ScoreLen(n) elements.
func Attend(out, q, scores []float32, n int, keys, values func(span int) []float32) {
	for lo := 0; lo < n; lo += Span {
		plane := keys(lo / Span)
		// Scores past n are computed from whatever is there and never looked at.
		width := min(Span, (n-lo+lane-1)/lane*lane)
		s := scores[lo : lo+width]
		f32.Scale(s, plane[:width], q[0])
		for d := 1; d < len(q); d++ {
			f32.AddScaled(s, q[d], plane[d*Span:d*Span+width])
		}
	}
	s, part := scores[:n], scores[len(scores)-MaxHeadDim:][:len(q)]
	f32.AddScalar(s, s, -f32.Max(s))
	f32.Exp(s, s)
	norm := 1 / f32.Sum(s)

	for lo := 0; lo < n; lo += Span {
		width := min(Span, n-lo)
		w := s[lo : lo+width]
		if lo == 0 {
			f32.DotProductStrided(out, values(0), w, len(q), width, Span)
			continue
		}
		f32.DotProductStrided(part, values(lo/Span), w, len(q), width, Span)
		f32.Add(out, out, part)
	}
	f32.Scale(out, out, norm)
}

// MaxHeadDim is the largest head dimension that Attend takes.
const MaxHeadDim = 512
