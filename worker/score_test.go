package worker_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/engine"
)

// logSoftmax is what a model thinks of each token, slowly.
func logSoftmax(logits []float32) []float64 {
	top, sum := math.Inf(-1), 0.0
	for _, v := range logits {
		top = max(top, float64(v))
	}
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = float64(v) - top - math.Log(sum)
	}
	return out
}

// Echo with logprobs tells of every token of the prompt what the engine thinks of it, whatever is cached, in one piece and in a stream. Each
// token's text is at its offset.
func TestPromptsAreScored(t *testing.T) {
	r := newReplica(t, v2, nil, nil)
	h := worker.Handler(r, worker.HandlerOptions{Model: "shakespeare"})
	e, _ := r.Resident()
	text := strings.Repeat("KATHARINA:\nI pray you, sir, is it your will, naïve — ", 6)
	tokens := e.Tokenizer().Encode(text)
	want := make([]float64, len(tokens)) // by calls of one token each
	best := make([]int32, len(tokens))
	seq, err := e.NewSequence()
	if err != nil {
		t.Fatal(err)
	}
	defer seq.Close()
	for i := range len(tokens) - 1 {
		logits, err := seq.Prefill(t.Context(), tokens[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		all := logSoftmax(logits)
		want[i+1], best[i+1] = all[tokens[i+1]], engine.NewSampler(engine.SampleOptions{}).Sample(logits)
	}
	ids, _ := json.Marshal(tokens)
	quoted, _ := json.Marshal(text)
	var first []continuation
	for _, most := range []int{0, 1, 5} {
		for _, prompt := range []string{string(quoted), string(ids), "[" + string(ids) + "]"} {
			for _, stream := range []string{"false", "true"} {
				body := fmt.Sprintf(`{"prompt":%s,"max_tokens":%d,"temperature":0,"logprobs":1,"echo":true,"seed":1234,"stream":%s}`, prompt, most, stream)
				got, _ := completed(t, h, body)
				l := got[0].Logprobs
				if len(got) != 1 || l == nil || len(l.Tokens) != len(tokens)+most || len(l.Probs) != len(l.Tokens) || len(l.Top) != len(l.Tokens) || len(l.Offset) != len(l.Tokens) {
					t.Fatalf("%s: %+v", body, got)
				}
				if l.Probs[0] != nil || l.Top[0] != nil {
					t.Errorf("the first token has %v and %v, want null", l.Probs[0], l.Top[0])
				}
				for i := 1; i < len(tokens); i++ {
					greedy := e.Tokenizer().Decode(best[i : i+1])
					if math.Abs(float64(*l.Probs[i])-want[i]) > 1e-5 {
						t.Errorf("token %d: %v, want %v", i, *l.Probs[i], want[i])
					}
					if p, ok := l.Top[i][strings.ToValidUTF8(greedy, "\ufffd")]; !ok || len(l.Top[i]) != 1 || p < *l.Probs[i] {
						t.Errorf("token %d: the likeliest is %v, want %q", i, l.Top[i], greedy)
					}
				}
				runes := []rune(got[0].Text)
				for i, offset := range l.Offset {
					if token := l.Tokens[i]; !strings.Contains(token, "\ufffd") && !strings.HasPrefix(string(runes[offset:]), token) {
						t.Errorf("token %d, %q, is not at %d: %q", i, token, offset, string(runes[offset:min(len(runes), offset+8)]))
					}
				}
				if !strings.HasPrefix(got[0].Text, text) || len(got[0].TokenIDs) != most || got[0].Finish != "length" {
					t.Errorf("%+v", got[0])
				}
				if most == 5 {
					if first == nil {
						first = got
					}
					same(t, body, got, first)
				}
			}
		}
	}
	if utf8.RuneCountInString(text) == len(text) {
		t.Error("the text has no character of several bytes")
	}
	// The honest price, and what it leaves behind.
	_, scored := completed(t, h, fmt.Sprintf(`{"prompt":%s,"max_tokens":1,"logprobs":1,"echo":true}`, quoted))
	if d := scored.Usage.Details; d.Cached != 0 || d.Computed != len(tokens) {
		t.Errorf("scored: %+v, want all of %d computed", d, len(tokens))
	}
	if _, plain := completed(t, h, fmt.Sprintf(`{"prompt":%s,"max_tokens":1}`, quoted)); plain.Usage.Details.Cached != (len(tokens)-1)/16*16 {
		t.Errorf("afterwards: %+v, want what was scored to be hot", plain.Usage.Details)
	}
	two, _ := completed(t, h, fmt.Sprintf(`{"prompt":%s,"max_tokens":5,"temperature":0,"logprobs":1,"echo":true,"n":2}`, quoted))
	same(t, "two choices", two, []continuation{first[0], first[0]})
}

// An engine that tells nothing of a prompt's tokens refuses by name, before it computes.
func TestEnginesThatCannotScoreSaySo(t *testing.T) {
	watch := &watched{Engine: tiny(t)}
	s := serve(t, replicaOf(t, watch, nil), worker.HandlerOptions{})
	status, answer := post(t, s, `{"prompt":"a","logprobs":1,"echo":true}`)
	if calls, _ := watch.log(); status != http.StatusBadRequest || !strings.Contains(answer, "echo together with logprobs") || !strings.Contains(answer, `"param":"echo"`) || len(calls) > 0 {
		t.Errorf("%d %s after %d calls", status, answer, len(calls))
	}
}

// ignore_eos and min_tokens make an answer as long as asked for, though the model would end it, and a stop string too.
func TestAnswersOfALeastLength(t *testing.T) {
	for name, e := range map[string]engine.Engine{"logits": tiny(t), "generator": generating{tiny(t)}} {
		r := replicaOf(t, e, nil)
		h := worker.Handler(r, worker.HandlerOptions{Model: "shakespeare"})
		const prompt = `"prompt":"abc","temperature":0,"max_tokens":12`
		ended := -1 // whose answer the model ends soon
		for id := int32(3); id < 250 && ended < 0; id++ {
			if c, _ := completed(t, h, fmt.Sprintf(`{"prompt":[%[1]d],"seed":%[1]d,"max_tokens":12}`, id)); c[0].Finish == "stop" && len(c[0].TokenIDs) < 6 {
				ended = int(id)
			}
		}
		if ended < 0 {
			t.Fatal("no prompt whose answer ends soon")
		}
		short := fmt.Sprintf(`"prompt":[%[1]d],"seed":%[1]d,"max_tokens":12`, ended)
		c, _ := completed(t, h, `{`+short+`}`)
		n := len(c[0].TokenIDs)
		long, _ := completed(t, h, `{`+short+`,"ignore_eos":true}`)
		if len(long[0].TokenIDs) != 12 || long[0].Finish != "length" || !slices.Equal(long[0].TokenIDs[:n], c[0].TokenIDs) {
			t.Errorf("%s: ignore_eos: %+v after %+v", name, long[0], c[0])
		}
		most, _ := completed(t, h, `{`+short+`,"min_tokens":12}`)
		if len(most[0].TokenIDs) != 12 || most[0].Finish != "length" {
			t.Errorf("%s: min_tokens equal to max_tokens: %+v", name, most[0])
		}
		if name == "generator" {
			if status, answer := ask(t, h, "/v1/completions", `{`+short+`,"min_tokens":5}`); status != http.StatusBadRequest || !strings.Contains(fmt.Sprint(answer), "min_tokens is not supported") {
				t.Errorf("%s: min_tokens: %d %v", name, status, answer)
			}
			continue
		}
		eos := e.Tokenizer().EOS()
		if least, _ := completed(t, h, fmt.Sprintf(`{%s,"min_tokens":%d}`, short, n+3)); len(least[0].TokenIDs) < n+3 || slices.Contains(least[0].TokenIDs[:n+3], eos) {
			t.Errorf("%s: min_tokens %d: %+v after %+v", name, n+3, least[0], c[0])
		}
		free, _ := completed(t, h, `{`+prompt+`,"ignore_eos":true}`)
		at := strings.IndexFunc(free[0].Text, func(c rune) bool { return c > ' ' && c < utf8.RuneSelf })
		letter, _ := json.Marshal(free[0].Text[at : at+1])
		stopped, _ := completed(t, h, `{`+prompt+`,"ignore_eos":true,"stop":`+string(letter)+`}`)
		later, _ := completed(t, h, `{`+prompt+`,"ignore_eos":true,"min_tokens":9,"stop":`+string(letter)+`}`)
		if len(stopped[0].TokenIDs) >= 9 || len(later[0].TokenIDs) < 9 {
			t.Errorf("%s: stop %s: %+v, and with min_tokens %+v", name, letter, stopped[0], later[0])
		}
	}
}
