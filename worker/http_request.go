package worker

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// sampling is what requests for completions and for chat completions have in common. Fields that would change the output and are not
// supported are here to be refused by name instead of being ignored.
type sampling struct {
	Model         string         `json:"model"`
	MaxTokens     *int           `json:"max_tokens"`
	Temperature   *float64       `json:"temperature"`
	TopP          *float64       `json:"top_p"`
	Seed          *int64         `json:"seed"`
	N             *int           `json:"n"`
	Stop          stops          `json:"stop"`
	Stream        bool           `json:"stream"`
	StreamOptions *streamOptions `json:"stream_options"`

	// CacheSalt separates tenants, as in vLLM: K/V is shared only between requests of equal salt.
	CacheSalt *string `json:"cache_salt"`

	// What follows changes nothing here.
	PromptCacheKey       string `json:"prompt_cache_key"`       // a routing hint; one worker has nothing to route
	PromptCacheRetention string `json:"prompt_cache_retention"` // the store's TTL decides
	User                 string `json:"user"`
	SafetyIdentifier     string `json:"safety_identifier"`
	Metadata             any    `json:"metadata"`
	Store                any    `json:"store"`
	ServiceTier          any    `json:"service_tier"`

	// vLLM's, which benchmarks need.
	IgnoreEOS bool `json:"ignore_eos"`
	MinTokens *int `json:"min_tokens"`

	// What follows is refused unless it is null or says that it is off: see off.
	LogitBias         map[string]any `json:"logit_bias"`
	FrequencyPenalty  *float64       `json:"frequency_penalty"`
	PresencePenalty   *float64       `json:"presence_penalty"`
	RepetitionPenalty *float64       `json:"repetition_penalty"`
	LengthPenalty     *float64       `json:"length_penalty"`
	TopK              *int           `json:"top_k"`
	MinP              *float64       `json:"min_p"`
	TypicalP          *float64       `json:"typical_p"`
	UseBeamSearch     *bool          `json:"use_beam_search"`
	StopTokenIDs      []int32        `json:"stop_token_ids"`
	IncludeStop       *bool          `json:"include_stop_str_in_output"`
	SkipSpecial       *bool          `json:"skip_special_tokens"`
	SpacesBetween     *bool          `json:"spaces_between_special_tokens"`
	AddSpecial        *bool          `json:"add_special_tokens"`
	PromptLogprobs    *int           `json:"prompt_logprobs"`
}

// off says what clients may send to switch something off that is not here.
func (q *sampling) off() error {
	return refuse(
		refused{"logit_bias", len(q.LogitBias) > 0},
		refused{"frequency_penalty", differs(q.FrequencyPenalty, 0)},
		refused{"presence_penalty", differs(q.PresencePenalty, 0)},
		refused{"repetition_penalty", differs(q.RepetitionPenalty, 1)},
		refused{"length_penalty", differs(q.LengthPenalty, 1)},
		refused{"top_k", differs(q.TopK, 0, -1)},
		refused{"min_p", differs(q.MinP, 0)},
		refused{"typical_p", differs(q.TypicalP, 1)},
		refused{"use_beam_search", differs(q.UseBeamSearch, false)},
		refused{"stop_token_ids", len(q.StopTokenIDs) > 0},
		refused{"include_stop_str_in_output", differs(q.IncludeStop, false)},
		refused{"skip_special_tokens", differs(q.SkipSpecial, true)},
		refused{"spaces_between_special_tokens", differs(q.SpacesBetween, true)}, // they have no text
		refused{"add_special_tokens", differs(q.AddSpecial, true)},
		refused{"prompt_logprobs", q.PromptLogprobs != nil},
	)
}

// differs reports whether a field was given and is none of the values that change nothing.
func differs[T comparable](given *T, harmless ...T) bool {
	return given != nil && !slices.Contains(harmless, *given)
}

type streamOptions struct {
	IncludeUsage       bool  `json:"include_usage"`
	ContinuousUsage    bool  `json:"continuous_usage_stats"` // vLLM's: usage so far in every event, with include_usage
	IncludeObfuscation *bool `json:"include_obfuscation"`    // padding against eavesdroppers; there is none
}

// unsupported is the error of a field that would change the output.
func unsupported(name string) error {
	return httpapi.BadRequest("unsupported_parameter", name, name+" is not supported: leave it out")
}

// refuse returns an error for the first field that was given.
func refuse(fields ...refused) error {
	for _, f := range fields {
		if f.given {
			return unsupported(f.name)
		}
	}
	return nil
}

type refused struct {
	name  string
	given bool
}

// request fills in what both endpoints have. limit is the field that MaxTokens comes from, maxTokens what a client that names none gets.
func (q *sampling) request(model, limit string, maxTokens int) (Request, error) {
	if q.Model != "" && q.Model != model {
		return Request{}, unknownModel(q.Model, model)
	}
	if err := q.off(); err != nil {
		return Request{}, err
	}
	if q.CacheSalt != nil && *q.CacheSalt == "" {
		return Request{}, httpapi.BadRequest("invalid_value", "cache_salt", "cache_salt is empty: leave it out or name the tenant")
	}
	if q.StreamOptions != nil && !q.Stream {
		return Request{}, httpapi.BadRequest("invalid_value", "stream_options", "stream_options is for streams: set stream to true or leave it out")
	}
	if q.N != nil && *q.N < 1 {
		return Request{}, httpapi.BadRequest("invalid_value", "n", fmt.Sprintf("n is %d, want at least 1", *q.N))
	}
	if q.MaxTokens != nil && *q.MaxTokens < 0 { // one of them means something else inside
		return Request{}, httpapi.BadRequest("invalid_value", limit, fmt.Sprintf("%s is %d, want 0 or more", limit, *q.MaxTokens))
	}
	req := Request{MaxTokens: maxTokens, Temperature: 1, TopP: 1, Stop: q.Stop, IgnoreEOS: q.IgnoreEOS}
	set(&req.MinTokens, q.MinTokens)
	set(&req.MaxTokens, q.MaxTokens)
	set(&req.Temperature, q.Temperature)
	set(&req.TopP, q.TopP)
	set(&req.N, q.N)
	set(&req.Salt, q.CacheSalt)
	if q.Seed != nil {
		req.Seed = uint64(*q.Seed)
	} else {
		req.Seed = randomSeed()
	}
	if req.TopP <= 0 || req.TopP > 1 {
		return Request{}, httpapi.BadRequest("invalid_value", "top_p", fmt.Sprintf("top_p is %v, want more than 0 and at most 1", req.TopP))
	}
	return req, nil
}

func unknownModel(asked, served string) error {
	return &httpapi.Error{Status: http.StatusNotFound, Type: httpapi.TypeInvalidRequest, Code: "model_not_found", Param: "model",
		Message: fmt.Sprintf("this worker serves %s, not %.100q", served, asked)}
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

func randomSeed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:])
}

// read decodes the body of a request, which has to arrive within bodyTimeout and to be UTF-8: encoding/json would put replacement characters
// where it is not, and answer a prompt that nobody has sent.
func (a *api) read(w http.ResponseWriter, r *http.Request, dst any) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // fails for a test's recorder only
	b, err := io.ReadAll(r.Body)                             // bounded by httpapi.LimitBodies
	_ = control.SetReadDeadline(time.Time{})
	if err == nil && !utf8.Valid(b) {
		return httpapi.BadRequest("invalid_utf8", "", "the body is not valid UTF-8")
	}
	rest := io.Reader(bytes.NewReader(b))
	if err != nil {
		rest = io.MultiReader(rest, failing{err}) // ReadJSON says it in its words
	}
	r.Body = io.NopCloser(rest)
	return httpapi.ReadOpenAIJSON(w, r, maxBody, dst)
}

// failing is a reader that has nothing but an error.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
