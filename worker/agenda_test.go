package worker

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever arrives, nothing waits for more than one turn of the other kind: a decode step comes behind every chunk that somebody who generates
// waited for, and a chunk behind every decode step. Chunks keep their order, nothing is lost and nothing comes twice.
func TestNeitherPromptsNorAnswersStarve(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var a agenda
		var waiting, chunks []*step
		last := 0 // 1 chunk, 2 decode
		for range rapid.IntRange(1, 60).Draw(rt, "events") {
			switch rapid.IntRange(0, 3).Draw(rt, "event") {
			case 0, 1:
				s := &step{batched: rapid.Bool().Draw(rt, "decode")}
				a.add(s)
				if waiting = append(waiting, s); !s.batched {
					chunks = append(chunks, s)
				}
			case 2:
				if len(waiting) > 0 {
					s := rapid.SampledFrom(waiting).Draw(rt, "leaves")
					if !a.remove(s) || a.remove(s) {
						rt.Fatal("a waiting step was not there, or is there after it was removed")
					}
					gone := func(other *step) bool { return other == s }
					waiting, chunks = slices.DeleteFunc(waiting, gone), slices.DeleteFunc(chunks, gone)
				}
			case 3:
				decodes := len(waiting) - len(chunks)
				got := a.next()
				switch {
				case len(waiting) == 0:
					if len(got) != 0 {
						rt.Fatal("a step out of nothing")
					}
				case got[0].batched:
					if len(got) != decodes || len(chunks) > 0 && last == 2 {
						rt.Fatalf("%d of %d decode steps, %d prompts wait, last %d", len(got), decodes, len(chunks), last)
					}
					last, waiting = 2, slices.Clone(chunks)
				default:
					if len(got) != 1 || got[0] != chunks[0] || decodes > 0 && last == 1 {
						rt.Fatalf("%d chunks, %d decode steps wait, last %d", len(got), decodes, last)
					}
					last, chunks = 1, chunks[1:]
					waiting = slices.DeleteFunc(waiting, func(s *step) bool { return s == got[0] })
				}
			}
			if a.empty() != (len(waiting) == 0) {
				rt.Fatal("empty is wrong")
			}
		}
	})
}
