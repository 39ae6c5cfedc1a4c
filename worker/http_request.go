package worker

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
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

	// What follows is refused unless it is null or what it would be by default.
	LogitBias        map[string]any `json:"logit_bias"`
	FrequencyPenalty *float64       `json:"frequency_penalty"`
	PresencePenalty  *float64       `json:"presence_penalty"`
}

type streamOptions struct {
	IncludeUsage       bool  `json:"include_usage"`
	IncludeObfuscation *bool `json:"include_obfuscation"` // padding against eavesdroppers; there is none
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
	if err := refuse(
		refused{"logit_bias", len(q.LogitBias) > 0},
		refused{"frequency_penalty", q.FrequencyPenalty != nil && *q.FrequencyPenalty != 0},
		refused{"presence_penalty", q.PresencePenalty != nil && *q.PresencePenalty != 0},
	); err != nil {
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
	req := Request{MaxTokens: maxTokens, Temperature: 1, TopP: 1, Stop: q.Stop}
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
