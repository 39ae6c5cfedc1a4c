package llamacpp

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/kvtier/kvtier/worker/engine"
)

// tokenizer asks the server, which has the model's own tokenizer, to split text. Joining happens here where the model file's vocabulary
// can be read, because it happens for every token that is generated; else the server does that too, and bytes of incomplete
// UTF-8 become replacement characters. It is safe for concurrent use.
type tokenizer struct {
	client *client
	vocab  int
	bos    int32
	eos    int32
	pieces []string
	// foreign says that the server has other weights than the file.
	foreign *atomic.Bool
}

var (
	_ engine.Tokenizer     = (*tokenizer)(nil)
	_ engine.PromptEncoder = (*tokenizer)(nil)
)

// newTokenizer asks what cannot be read from the file.
func newTokenizer(ctx context.Context, c *client, vocab int, p props, pieces []string, foreign *atomic.Bool) (t *tokenizer, err error) {
	t = &tokenizer{client: c, vocab: vocab, foreign: foreign}
	if len(pieces) == vocab {
		t.pieces = pieces
	}
	if t.bos, err = c.special(ctx, p.BOS); err != nil {
		return nil, err
	}
	t.eos, err = c.special(ctx, p.EOS)
	return t, err
}

// special is the token that a text stands for, -1 for none.
func (c *client) special(ctx context.Context, text string) (int32, error) {
	if text == "" {
		return -1, nil
	}
	tokens, err := c.tokenize(ctx, text, false, true)
	if err != nil || len(tokens) != 1 { // more: it is no token
		return -1, err
	}
	return tokens[0], nil
}

// Encode implements [engine.Tokenizer]: no tokens if the server does not answer. EncodePrompt can tell.
func (t *tokenizer) Encode(text string) []int32 {
	tokens, err := t.EncodePrompt(context.Background(), text, false)
	if err != nil {
		return nil
	}
	return tokens
}

// EncodePrompt implements [engine.PromptEncoder]. The token that begins a text comes first if the model file asks for it.
func (t *tokenizer) EncodePrompt(ctx context.Context, text string, special bool) ([]int32, error) {
	tokens, err := t.client.tokenize(ctx, text, true, special)
	if err != nil {
		return nil, err
	}
	if special && len(tokens) > 1 && tokens[0] == t.bos && tokens[1] == t.bos {
		tokens = tokens[1:]
	}
	for i, id := range tokens {
		if id < 0 || int(id) >= t.vocab {
			return nil, fmt.Errorf("%w: token %d at %d is outside the vocabulary of %d", ErrServer, id, i, t.vocab)
		}
	}
	return tokens, nil
}

// Decode implements [engine.Tokenizer].
func (t *tokenizer) Decode(tokens []int32) string {
	if t.pieces == nil || t.foreign.Load() {
		known := make([]int32, 0, len(tokens))
		for _, id := range tokens {
			if id >= 0 && int(id) < t.vocab {
				known = append(known, id)
			}
		}
		text, err := t.client.detokenize(context.Background(), known)
		if err != nil {
			return ""
		}
		return text
	}
	var b strings.Builder
	for _, id := range tokens {
		if id >= 0 && int(id) < len(t.pieces) {
			b.WriteString(t.pieces[id])
		}
	}
	return b.String()
}

// EOS implements [engine.Tokenizer].
func (t *tokenizer) EOS() int32 { return t.eos }

// Vocab implements [engine.Tokenizer].
func (t *tokenizer) Vocab() int { return t.vocab }
