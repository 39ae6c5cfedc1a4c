package llama

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

var (
	_ engine.Templater      = (*Model)(nil)
	_ engine.SpecialEncoder = (*tokenizer)(nil)
)

// chat is what a model file says about conversations.
type chat struct {
	template engine.ChatTemplate
	special  map[string]int32 // control tokens by their text
	find     *regexp.Regexp   // any of them; nil if there are none
}

const maxTemplateBytes = 1 << 20

// chatTemplate reads the source of a GGUF file's template, empty if it has none.
func chatTemplate(m gguf.Metadata) (string, error) {
	source, err := gguf.Get[string](m, "tokenizer.chat_template")
	if errors.Is(err, gguf.ErrMissing) {
		return "", nil
	}
	return source, err
}

func newChat(source string, v vocabulary, bos, eos int32) (chat, error) {
	c := chat{special: map[string]int32{}}
	c.template.Source = source
	if n := len(source); n > maxTemplateBytes {
		return c, fmt.Errorf("the chat template has %d bytes, want at most %d", n, maxTemplateBytes)
	}
	var err error
	if bos >= 0 {
		c.template.BOS = v.pieces[bos]
	}
	if eos >= 0 {
		c.template.EOS = v.pieces[eos]
	}
	var texts []string
	for i, piece := range v.pieces {
		if v.types[i] == pieceControl && piece != "" {
			c.special[piece] = int32(i)
			texts = append(texts, regexp.QuoteMeta(piece))
		}
	}
	if len(texts) > 0 {
		// Go takes the first alternative that matches: the longest has to come first.
		slices.SortFunc(texts, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) })
		c.find, err = regexp.Compile(strings.Join(texts, "|"))
	}
	return c, err
}

// ChatTemplate implements [engine.Templater].
func (m *Model) ChatTemplate() engine.ChatTemplate { return m.tokenizer.chat.template }

// EncodeSpecial implements [engine.SpecialEncoder]. A space that begins a text is put behind every special token, as llama.cpp does.
func (t *tokenizer) EncodeSpecial(text string) []int32 {
	var tokens []int32
	if t.addBOS && !strings.HasPrefix(text, t.chat.template.BOS) {
		tokens = append(tokens, t.bos)
	}
	plain := func(s string) {
		if s != "" {
			all := t.Encode(s)
			if t.addBOS {
				all = all[1:]
			}
			tokens = append(tokens, all...)
		}
	}
	at := 0
	if t.chat.find != nil {
		for _, m := range t.chat.find.FindAllStringIndex(text, -1) {
			plain(text[at:m[0]])
			tokens = append(tokens, t.chat.special[text[m[0]:m[1]]])
			at = m[1]
		}
	}
	plain(text[at:])
	return tokens
}
