package warmup

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/kvtier/kvtier/worker"
)

// Tokenizer turns text into tokens; an engine's is one.
type Tokenizer interface{ Encode(text string) []int32 }

// LocalEncoder is an Encoder with a vocabulary in this process.
type LocalEncoder struct {
	Tokenizer Tokenizer
	// Chat encodes conversations, which take a chat template; nil refuses them.
	Chat Encoder
}

// Encode implements Encoder.
func (e LocalEncoder) Encode(ctx context.Context, items []Item) ([][]int32, error) {
	all := make([][]int32, len(items))
	for i, it := range items {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch {
		case it.Tokens != nil:
			all[i] = it.Tokens
		case it.Messages == nil:
			all[i] = e.Tokenizer.Encode(it.Prompt)
		case e.Chat == nil:
			return nil, fmt.Errorf("%w: messages take a worker's chat template; this process has none: give prompt or tokens", ErrLine)
		default:
			one, err := e.Chat.Encode(ctx, items[i:i+1])
			if err != nil {
				return nil, err
			}
			all[i] = one[0]
		}
	}
	return all, nil
}

// RemoteEncoder is an Encoder that asks workers, one after the other; a list of tokens is taken as it is.
type RemoteEncoder struct {
	Workers []*Remote

	turn atomic.Uint32
}

// batchBytes bounds the texts of one request: a worker's limit, with room for what JSON adds.
const batchBytes = 256 << 10

// Encode implements Encoder.
func (e *RemoteEncoder) Encode(ctx context.Context, items []Item) ([][]int32, error) {
	all := make([][]int32, len(items))
	var body worker.TokenizeBody
	var at []int
	size := 0
	flush := func() error {
		if len(at) == 0 {
			return nil
		}
		tokens, err := e.ask(ctx, body)
		if err != nil {
			return err
		}
		for i, t := range tokens {
			all[at[i]] = t
		}
		body, at, size = worker.TokenizeBody{}, nil, 0
		return nil
	}
	chats := false // a request holds texts or conversations, not both
	for i, it := range items {
		if it.Tokens != nil {
			all[i] = it.Tokens
			continue
		}
		chat := it.Messages != nil
		n := len(it.Prompt)
		for _, m := range it.Messages {
			n += len(m.Role) + len(m.Content) + chatOverhead
		}
		if size+n > batchBytes || chat != chats {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		chats = chat
		if chat {
			body.Conversations = append(body.Conversations, it.turns())
		} else {
			body.Prompts = append(body.Prompts, it.Prompt)
		}
		at, size = append(at, i), size+n
	}
	return all, flush()
}

// chatOverhead is what JSON adds to a message.
const chatOverhead = 32

func (it Item) turns() (all []worker.ChatMessage) {
	for _, m := range it.Messages {
		all = append(all, worker.ChatMessage(m))
	}
	return all
}

func (e *RemoteEncoder) ask(ctx context.Context, body worker.TokenizeBody) (tokens [][]int32, err error) {
	for range e.Workers {
		w := e.Workers[int(e.turn.Add(1))%len(e.Workers)]
		if tokens, err = w.Tokenize(ctx, body); err == nil || ctx.Err() != nil {
			return tokens, err
		}
	}
	return nil, fmt.Errorf("tokens: %w", err)
}
