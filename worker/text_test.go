package worker

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// cut is the text before the stop string that is complete first, found the slow way.
func cut(text string, stops []string) string {
	for end := 1; end <= len(text); end++ {
		longest := 0
		for _, s := range stops {
			if strings.HasSuffix(text[:end], s) {
				longest = max(longest, len(s))
			}
		}
		if longest > 0 {
			return text[:end-longest]
		}
	}
	return text
}

// Wherever the borders of tokens are, the text ends before the first stop string, nothing of one is ever shown, and no character is split.
func TestTextDoesNotDependOnTokenBorders(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		alphabet := rapid.SampledFrom([]string{"a", "b", "ab", "é", "日", "🙂", "\n"})
		text := strings.Join(rapid.SliceOfN(alphabet, 0, 24).Draw(rt, "text"), "")
		var stops []string
		for _, s := range rapid.SliceOfN(rapid.SliceOfN(alphabet, 1, 3), 0, 3).Draw(rt, "stops") {
			stops = append(stops, strings.Join(s, ""))
		}
		b := textBuilder{stops: stops}
		var shown string
		var tokens, known, starts, ends = 0, 0, []int{}, []int{}
		for left := text; left != "" && !b.stopped; {
			n := rapid.IntRange(0, min(3, len(left))).Draw(rt, "bytes")
			starts, ends = append(starts, known), append(ends, known+n)
			piece, count := b.add(left[:n])
			left, known = left[n:], known+n
			shown, tokens = shown+piece, tokens+count
			if !utf8.ValidString(piece) {
				rt.Fatalf("%q is a part of a character", piece)
			}
			if !strings.HasPrefix(cut(text, stops), shown) {
				rt.Fatalf("%q was shown of %q", shown, cut(text, stops))
			}
			if !b.stopped && tokens > 0 && ends[tokens-1] > len(shown) {
				rt.Fatalf("%d tokens told, the last ends at %d, but only %d bytes are shown", tokens, ends[tokens-1], len(shown))
			}
		}
		if !b.stopped {
			piece, count := b.end()
			shown, tokens = shown+piece, tokens+count
		}
		if want := cut(text, stops); shown != want || b.all.String() != want {
			rt.Fatalf("shown %q, remembered %q, want %q", shown, b.all.String(), want)
		}
		if b.stopped != (cut(text, stops) != text) {
			rt.Fatalf("stopped: %v", b.stopped)
		}
		for i, start := range starts { // every token that shows something is told, and none that shows nothing
			if visible := start < len(shown); visible && i >= tokens || !visible && i < tokens && ends[i] > start {
				rt.Fatalf("token %d begins at %d of %d shown, %d are told", i, start, len(shown), tokens)
			}
		}
	})
}

// A model may end in the middle of a character, or generate bytes that are none.
func TestTextThatIsNotUTF8ComesOutAtTheEnd(t *testing.T) {
	b := textBuilder{}
	if got, n := b.add("a\xe6\x97"); got != "a" || n != 0 {
		t.Errorf("%q of %d tokens, want a of 0", got, n)
	}
	if got, n := b.end(); got != "\xe6\x97" || n != 1 {
		t.Errorf("at the end %q of %d tokens", got, n)
	}
	b = textBuilder{}
	if got, _ := b.add("\xff\xfe."); got != "\xff\xfe." {
		t.Errorf("%q, but nothing could complete it", got)
	}
}
