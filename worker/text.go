package worker

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// textBuilder turns the texts of tokens into text that may be shown: never a part of a character, and never what may still turn out to be the
// beginning of a stop string. It ends before the first stop string, wherever the borders of tokens are.
type textBuilder struct {
	stops   []string
	all     strings.Builder // shown so far
	held    []byte          // behind that, not certain yet
	pieces  []int           // bytes of each token that is not shown yet, in order
	partial int             // bytes of the first of pieces that are shown already
	stopped bool
}

// add appends the text of one token and returns what has become certain: text, and the number of tokens whose text ends in it.
func (b *textBuilder) add(piece string) (text string, tokens int) {
	b.held = append(b.held, piece...)
	b.pieces = append(b.pieces, len(piece))
	if at := b.stopAt(); at >= 0 {
		b.stopped = true
		b.held = b.held[:at]
		return b.end()
	}
	return b.show(len(b.held) - b.uncertain())
}

// end returns what is left when nothing follows, and the number of tokens that it shows at least a part of.
func (b *textBuilder) end() (text string, tokens int) {
	left := len(b.held)
	text, tokens = b.show(left)
	if b.partial > 0 { // cut inside a token
		tokens++
	}
	b.pieces, b.partial = nil, 0
	return text, tokens
}

func (b *textBuilder) show(n int) (text string, tokens int) {
	text = string(b.held[:n])
	b.all.WriteString(text)
	b.held = b.held[:copy(b.held, b.held[n:])]
	b.partial += n
	for tokens < len(b.pieces) && b.partial >= b.pieces[tokens] {
		b.partial -= b.pieces[tokens]
		tokens++
	}
	b.pieces = slices.Delete(b.pieces, 0, tokens)
	return text, tokens
}

// stopAt is where the stop string that is complete first begins, -1 without one. Which one that is does not depend on the borders of tokens.
func (b *textBuilder) stopAt() int {
	held := string(b.held)
	begin, end := -1, len(held)+1
	for _, s := range b.stops {
		if at := strings.Index(held, s); at >= 0 && (at+len(s) < end || at+len(s) == end && at < begin) {
			begin, end = at, at+len(s)
		}
	}
	return begin
}

// uncertain is the number of bytes at the end that may be the beginning of a stop string or of a character.
func (b *textBuilder) uncertain() int {
	held := string(b.held)
	most := 0
	for _, s := range b.stops {
		for n := min(len(s)-1, len(held)); n > most; n-- {
			if strings.HasSuffix(held, s[:n]) {
				most = n
				break
			}
		}
	}
	return most + incomplete(held[:len(held)-most])
}

// incomplete is the length of the beginning of a character at the end of s.
func incomplete(s string) int {
	for n := 1; n <= min(utf8.UTFMax-1, len(s)); n++ {
		if tail := s[len(s)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRuneInString(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
