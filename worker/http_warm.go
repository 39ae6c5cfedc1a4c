package worker

import (
	"context"
	"errors"
	"net/http"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/tiered"
)

// WarmInfo is the answer to GET /v1/warm: what a job needs to know of a worker before it plans.
type WarmInfo struct {
	Model   string        `json:"model"`
	Label   string        `json:"label"`
	Variant block.Variant `json:"variant"`
	Weights block.Digest  `json:"weights"`
	Layout  block.Digest  `json:"layout"`
	Epoch   block.Epoch   `json:"epoch"`
	// Act is the random name of the activation that gave out the epoch.
	Act coordinator.Act `json:"act"`
	// Root is the root of the default tenant's chains: equal for workers with equal weights and cluster secrets.
	Root          string       `json:"root"`
	LayoutSpec    block.Layout `json:"layout_spec"`
	BlockTokens   int          `json:"block_tokens"`
	BlockBytes    int          `json:"block_bytes"` // of a block's payload
	BlockParts    int          `json:"block_parts"`
	ContextTokens int          `json:"context_tokens"`
	Shared        bool         `json:"shared"` // whether the remote tier may be used now
}

// WarmBody is the body of POST /v1/warm.
type WarmBody struct {
	Prompt    string         `json:"prompt,omitempty"`
	Tokens    []int32        `json:"tokens,omitempty"` // instead of prompt
	CacheSalt string         `json:"cache_salt,omitempty"`
	Variant   *block.Variant `json:"variant,omitempty"` // refuse with 409 if another is resident
	Pin       bool           `json:"pin,omitempty"`
	Names     bool           `json:"names,omitempty"`   // answer with the hashes of the blocks, and nothing else
	Look      bool           `json:"look,omitempty"`    // count what is stored, and nothing else
	Unpin     bool           `json:"unpin,omitempty"`   // let it expire again, and nothing else
	Measure   bool           `json:"measure,omitempty"` // compute all of it, store nothing
}

// WarmAnswer is the answer to POST /v1/warm.
type WarmAnswer struct {
	Variant        block.Variant `json:"variant"`
	Label          string        `json:"label"`
	Epoch          block.Epoch   `json:"epoch"`
	PromptTokens   int           `json:"prompt_tokens"`
	PresentTokens  int           `json:"present_tokens"`
	LoadedTokens   int           `json:"loaded_tokens"`
	ComputedTokens int           `json:"computed_tokens"`
	StoredBytes    int64         `json:"stored_bytes"`
	EncodedBytes   int64         `json:"encoded_bytes,omitempty"` // of a measurement
	PinnedTokens   int           `json:"pinned_tokens"`
	Hashes         []string      `json:"hashes,omitempty"`    // with names: of the blocks, in base64url
	Namespace      *block.Digest `json:"namespace,omitempty"` // with names
	Milliseconds   float64       `json:"ms"`
}

// TokenizeBody is the body of POST /v1/warm/tokens: texts, or conversations, which the chat template makes texts of.
type TokenizeBody struct {
	Prompts       []string        `json:"prompts,omitempty"`
	Conversations [][]ChatMessage `json:"conversations,omitempty"`
}

// ChatMessage is one turn of a conversation.
type ChatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// TokenizeAnswer is the answer to POST /v1/warm/tokens.
type TokenizeAnswer struct {
	Variant block.Variant `json:"variant"`
	Tokens  [][]int32     `json:"tokens"`
}

// Codes of refusals that end a warm-up at once.
const (
	CodeVariant    = "variant_mismatch"
	CodeNotGranted = "not_granted"
	CodeTierFull   = "tier_full"
)

// WarmInfo says what a job needs to know of r.
func (r *Replica) WarmInfo(model string) WarmInfo {
	e, label := r.Resident()
	l, id, v := e.Layout(), e.Identity(), r.opts.Cache.View()
	return WarmInfo{
		Model: model, Label: label, Variant: id.Variant(), Weights: id.Weights, Layout: id.Layout, Epoch: v.Epoch,
		Act: v.Act, LayoutSpec: l, Root: block.NewChain(r.opts.Secret, id, "", l.BlockTokens).Root().String(),
		BlockTokens: l.BlockTokens, BlockBytes: l.BlockBytes(), BlockParts: l.PartCount(), ContextTokens: e.ContextTokens(),
		Shared: r.opts.Cache.Shared() && v.Identity == id && v.Access == tiered.AccessShared,
	}
}

func (a *api) warmInfo(w http.ResponseWriter, _ *http.Request) {
	httpapi.WriteJSON(w, http.StatusOK, a.replica.WarmInfo(a.opts.Model))
}

func (a *api) warm(w http.ResponseWriter, r *http.Request) {
	var body WarmBody
	if err := httpapi.ReadJSON(w, r, maxBody, &body); err != nil {
		a.fail(w, err)
		return
	}
	if (body.Prompt == "") == (len(body.Tokens) == 0) {
		a.fail(w, httpapi.BadRequest("invalid_request", "prompt", "give either prompt or tokens"))
		return
	}
	req := WarmRequest{Prompt: body.Prompt, Tokens: body.Tokens, Salt: body.CacheSalt, Pin: body.Pin, Names: body.Names, Look: body.Look, Unpin: body.Unpin, Measure: body.Measure}
	if body.Variant != nil {
		req.Variant = *body.Variant
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.RequestTimeout)
	defer cancel()
	res, err := a.replica.Warm(ctx, req)
	if err != nil {
		a.fail(w, warmError(err))
		return
	}
	httpapi.WriteJSON(w, http.StatusOK, res.Answer())
}

// Answer is r as it goes over the wire.
func (r WarmResult) Answer() WarmAnswer {
	a := WarmAnswer{
		Variant: r.Identity.Variant(), Label: r.Label, Epoch: r.Epoch, PromptTokens: r.PromptTokens, PresentTokens: r.PresentTokens,
		LoadedTokens: r.LoadedTokens, ComputedTokens: r.ComputedTokens, StoredBytes: r.StoredBytes, EncodedBytes: r.EncodedBytes, PinnedTokens: r.PinnedTokens,
		Milliseconds: float64(r.Total.Microseconds()) / 1000,
	}
	if !r.Namespace.IsZero() {
		a.Namespace = &r.Namespace
		for _, h := range r.Hashes {
			a.Hashes = append(a.Hashes, h.String())
		}
	}
	return a
}

// warmError gives what a job has to tell apart a status and a code.
func warmError(err error) error {
	refuse := func(status int, code string) error {
		return &httpapi.Error{Status: status, Type: httpapi.TypeServer, Code: code, Message: err.Error()}
	}
	switch {
	case errors.Is(err, ErrVariant):
		return refuse(http.StatusConflict, CodeVariant)
	case errors.Is(err, ErrNotGranted):
		return refuse(http.StatusConflict, CodeNotGranted)
	case errors.Is(err, store.ErrFull):
		return refuse(http.StatusInsufficientStorage, CodeTierFull)
	case errors.Is(err, tiered.ErrPins):
		return refuse(http.StatusNotImplemented, "cannot_pin")
	case errors.Is(err, ErrTier):
		return refuse(http.StatusServiceUnavailable, "tier_unavailable")
	}
	return err
}

// tokens answers POST /v1/warm/tokens: jobs plan by tokens, and who has the weights has the vocabulary.
func (a *api) tokens(w http.ResponseWriter, r *http.Request) {
	var body TokenizeBody
	if err := httpapi.ReadJSON(w, r, maxBody, &body); err != nil {
		a.fail(w, err)
		return
	}
	if (len(body.Prompts) == 0) == (len(body.Conversations) == 0) {
		a.fail(w, httpapi.BadRequest("missing_field", "prompts", "give either prompts or conversations"))
		return
	}
	e, _ := a.replica.Resident()
	answer := TokenizeAnswer{Variant: e.Identity().Variant()}
	for _, p := range body.Prompts {
		answer.Tokens = append(answer.Tokens, e.Tokenizer().Encode(p))
	}
	for _, turns := range body.Conversations {
		messages := make([]message, len(turns))
		for i, t := range turns {
			messages[i] = message{Role: t.Role, Content: content{text: t.Content, set: true}}
		}
		q := Request{}
		var err error
		if q.Prompt, q.Markup, err = a.template().render(messages); err != nil {
			a.fail(w, err)
			return
		}
		tokens, _, err := q.tokens(r.Context(), e, 1)
		if err != nil {
			a.fail(w, err)
			return
		}
		answer.Tokens = append(answer.Tokens, tokens)
	}
	httpapi.WriteJSON(w, http.StatusOK, answer)
}
