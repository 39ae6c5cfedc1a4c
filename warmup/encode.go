package warmup

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Tokenizer turns text into tokens; an engine's is one.
type Tokenizer interface{ Encode(text string) []int32 }

// LocalEncoder is an Encoder with a vocabulary in this process.
type LocalEncoder struct{ Tokenizer Tokenizer }

// Encode implements Encoder.
func (e LocalEncoder) Encode(ctx context.Context, items []Item) ([][]int32, error) {
	all := make([][]int32, len(items))
	for i, it := range items {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		text, err := it.text()
		if err != nil {
			return nil, err
		}
		if all[i] = it.Tokens; all[i] == nil {
			all[i] = e.Tokenizer.Encode(text)
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
	var texts []string
	var at []int
	size := 0
	flush := func() error {
		if len(texts) == 0 {
			return nil
		}
		tokens, err := e.ask(ctx, texts)
		if err != nil {
			return err
		}
		for i, t := range tokens {
			all[at[i]] = t
		}
		texts, at, size = nil, nil, 0
		return nil
	}
	for i, it := range items {
		if it.Tokens != nil {
			all[i] = it.Tokens
			continue
		}
		text, err := it.text()
		if err != nil {
			return nil, err
		}
		if size+len(text) > batchBytes {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		texts, at, size = append(texts, text), append(at, i), size+len(text)
	}
	return all, flush()
}

func (e *RemoteEncoder) ask(ctx context.Context, texts []string) (tokens [][]int32, err error) {
	for range e.Workers {
		w := e.Workers[int(e.turn.Add(1))%len(e.Workers)]
		if tokens, err = w.Tokenize(ctx, texts); err == nil || ctx.Err() != nil {
			return tokens, err
		}
	}
	return nil, fmt.Errorf("tokens: %w", err)
}

// errMessages is the answer to messages without a chat template.
var errMessages = errors.New("messages need a chat template, and the model has none: give prompt or tokens")

// text is what the item's tokens are made of.
func (it Item) text() (string, error) {
	if it.Messages != nil {
		return "", broken("%w", errMessages)
	}
	return it.Prompt, nil
}
