package llamacpp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// completion is a request to POST /completion. Every setting that changes the output is given, whatever the server's defaults are.
type completion struct {
	Prompt      []int32 `json:"prompt"`
	Slot        int     `json:"id_slot"`
	CachePrompt bool    `json:"cache_prompt"`
	Predict     int     `json:"n_predict"`
	Stream      bool    `json:"stream"`
	Tokens      bool    `json:"return_tokens"`

	Samplers      []string `json:"samplers"`
	Temperature   float64  `json:"temperature"`
	TopP          float64  `json:"top_p"`
	Seed          uint32   `json:"seed"`
	Probs         int      `json:"n_probs"`
	RepeatPenalty float64  `json:"repeat_penalty"`
	IgnoreEOS     bool     `json:"ignore_eos"`
}

// newCompletion asks for opts in the order of [engine.Sampler]: temperature, then nucleus.
func newCompletion(prompt []int32, opts engine.GenerateOptions) completion {
	c := completion{Prompt: prompt, Tokens: true, Predict: opts.MaxTokens, Probs: opts.TopLogprobs, RepeatPenalty: 1, IgnoreEOS: opts.IgnoreEOS, TopP: 1,
		Samplers: []string{"temperature"}, Seed: seed32(opts.Seed)}
	if opts.Temperature > 0 {
		c.Temperature = opts.Temperature
		if opts.TopP > 0 && opts.TopP < 1 {
			c.TopP, c.Samplers = opts.TopP, []string{"temperature", "top_p"}
		}
	}
	return c
}

// seed32 folds a seed into the server's, of which the largest means a random one.
func seed32(seed uint64) uint32 {
	s := uint32(seed) ^ uint32(seed>>32)
	return min(s, 1<<32-2)
}

// event is one line of a completion's stream, or its only answer.
type event struct {
	Content   string
	Tokens    []int32
	Stop      bool
	StopType  string `json:"stop_type"`
	Predicted int    `json:"tokens_predicted"`
	Probs     []struct {
		ID      int32
		Logprob float32
		Top     []struct {
			ID      int32
			Logprob float32
		} `json:"top_logprobs"`
	} `json:"completion_probabilities"`
	Timings struct {
		Reused   int `json:"cache_n"`
		Computed int `json:"prompt_n"`

		PromptMS    float64 `json:"prompt_ms"`
		PredictedMS float64 `json:"predicted_ms"`
	}
	Error *struct{ Message string }
}

// generated pairs an event's tokens with their probabilities.
func (e *event) generated(top int) []engine.Generated {
	all := make([]engine.Generated, len(e.Tokens))
	for i, t := range e.Tokens {
		all[i].Token = t
		if top == 0 || i >= len(e.Probs) {
			continue
		}
		all[i].Logprob = e.Probs[i].Logprob
		for _, p := range e.Probs[i].Top {
			all[i].Top = append(all[i].Top, engine.TokenLogprob{Token: p.ID, Logprob: p.Logprob})
		}
	}
	return all
}

var errStalled = fmt.Errorf("llama-server has gone silent: %w", context.DeadlineExceeded)

// complete runs a completion and calls yield for each event until it returns false or the server has ended. Leaving early closes the connection,
// which makes the server stop computing.
func (c *client) complete(ctx context.Context, req completion, yield func(*event) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.stall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	resp, err := c.send(ctx, http.MethodPost, "/completion", req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !req.Stream {
		var e event
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return c.fault(ctx, "/completion", err)
		}
		if err := e.decode(b); err != nil {
			return err
		}
		if !e.Stop {
			return fmt.Errorf("%w: /completion answers without an end", ErrServer)
		}
		yield(&e)
		return nil
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 16<<10), maxEvent)
	for lines.Scan() {
		watchdog.Reset(c.stall)
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			if data, ok = bytes.CutPrefix(lines.Bytes(), []byte("error: ")); !ok {
				continue
			}
		}
		var e event
		if err := e.decode(data); err != nil {
			return err
		}
		if !yield(&e) {
			return nil
		}
		if e.Stop {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // so that the connection can be used again
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return c.fault(ctx, "/completion", err)
	}
	return c.fault(ctx, "/completion", errors.New("the stream ended without an end of the text"))
}

func (e *event) decode(b []byte) error {
	if err := json.Unmarshal(b, e); err != nil {
		return fmt.Errorf("%w: /completion answers what is not understood: %w: %.100q", ErrServer, err, b)
	}
	if e.Error != nil {
		return fmt.Errorf("%w: /completion: %.200s", ErrServer, e.Error.Message)
	}
	return nil
}
