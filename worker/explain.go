package worker

import (
	"context"
	"fmt"
	"net/http"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/tiered"
)

// Explanation says what the cache has of one prompt at this moment, and what a request for it would do.
type Explanation struct {
	Label       string `json:"label"`
	Variant     string `json:"variant"`
	Epoch       uint64 `json:"epoch"`
	Access      string `json:"access"` // what the cache may use: none, hot or shared
	Tokens      int    `json:"tokens"`
	BlockTokens int    `json:"block_tokens"`
	// Uncached is the number of tokens at the end that are always computed: the last one, and what fills no block.
	Uncached int `json:"uncached_tokens"`

	Gate   string `json:"gate"`   // auto, always or never
	Choice string `json:"choice"` // load, compute, both or measure; of the blocks that only the remote tier has
	Asks   bool   `json:"asks"`   // whether a request would ask the remote tier at all
	// Meet is the first token that would be loaded from the remote tier; those of remote blocks before it would be computed.
	Meet      int              `json:"meet_token"`
	Estimates ExplainEstimates `json:"estimates"`
	Blocks    []ExplainedBlock `json:"blocks"`
}

// ExplainEstimates are what the decision rests on. 0 means that nothing has been measured yet.
type ExplainEstimates struct {
	RTTms          float64 `json:"rtt_ms"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	TokenMicros    float64 `json:"prefill_us_per_token"` // at position 0
	PositionMicros float64 `json:"prefill_us_per_token_per_1000_positions"`
	LoadMs         float64 `json:"load_ms"`
	ComputeMs      float64 `json:"compute_ms"`
	BothMs         float64 `json:"both_ms"`
}

// ExplainedBlock is one full block of the prompt.
type ExplainedBlock struct {
	Index  int    `json:"index"`
	Token  int    `json:"first_token"`
	Hash   string `json:"hash"`  // the beginning of it
	Found  string `json:"found"` // hot, remote or none
	Reason string `json:"reason"`
	Action string `json:"action"` // what a request would do: use, load or compute
}

// Explain answers why the K/V of req's prompt would come from where. It needs no turn and computes nothing.
func (r *Replica) Explain(ctx context.Context, req Request) (Explanation, error) {
	if err := r.latch.Acquire(ctx, 1); err != nil { // the engine stays resident
		return Explanation{}, fmt.Errorf("worker: explain: %w", err)
	}
	defer r.latch.Release(1)
	if r.Closing() {
		return Explanation{}, ErrClosed
	}
	e, label := r.Resident()
	tokens, _, err := req.tokens(ctx, e, r.opts.MaxSequences)
	if err != nil {
		return Explanation{}, err
	}
	l, c := e.Layout(), r.opts.Cache
	view := c.View()
	chain := block.NewChain(r.opts.Secret, e.Identity(), req.Salt, l.BlockTokens)
	chain.After(view.Cuts[chain.Namespace()])
	hashes := chain.AppendHashes(nil, tokens)[:block.Reusable(len(tokens), l.BlockTokens)]
	found, hot, remote := c.Explain(ctx, view, chain.Namespace(), hashes)

	work := gate.Work{At: hot * l.BlockTokens, End: (hot + remote) * l.BlockTokens, Block: l.BlockTokens, TokenBytes: float64(l.TokenBytes())}
	all := work
	all.End = len(hashes) * l.BlockTokens
	path, prefill := c.Path(), r.prefill[req.Priority].Estimate()
	plan := gate.Decide(path, prefill, work)
	asks, _ := gate.Ask(path, prefill, all, c.ProbeTimeout())
	switch r.opts.Gate {
	case gate.Always:
		plan.Choice, plan.Meet, asks = gate.Load, work.At, true
	case gate.Never:
		plan.Choice, plan.Meet, asks = gate.Compute, work.End, false
	}
	if !asks {
		plan.Choice, plan.Meet = gate.Compute, work.End
	}
	x := Explanation{
		Label: label, Variant: e.Identity().Variant().String(), Epoch: uint64(view.Epoch), Access: view.Access.String(), Tokens: len(tokens),
		BlockTokens: l.BlockTokens, Uncached: len(tokens) - all.End, Gate: r.opts.Gate.String(), Choice: plan.Choice.String(), Asks: asks,
		Meet: plan.Meet, Blocks: make([]ExplainedBlock, len(hashes)),
		Estimates: ExplainEstimates{
			RTTms: path.RTT * 1e3, TokenMicros: prefill.Token * 1e6, PositionMicros: prefill.Position * 1e9,
			LoadMs: plan.Load * 1e3, ComputeMs: plan.Compute * 1e3, BothMs: plan.Both * 1e3,
		},
	}
	if path.Byte > 0 {
		x.Estimates.BytesPerSecond = 1 / path.Byte
	}
	for i, f := range found {
		b := ExplainedBlock{Index: i, Token: i * l.BlockTokens, Hash: hashes[i].String()[:12], Found: f.Tier, Reason: f.Why.String(), Action: "compute"}
		switch f.Tier {
		case "hot":
			b.Action = "use"
		case "":
			b.Found = "none"
		default:
			if b.Token >= plan.Meet {
				b.Action = "load"
			} else {
				b.Reason = tiered.MissGate.String()
			}
		}
		x.Blocks[i] = b
	}
	return x, nil
}

type explainRequest struct {
	Prompt    prompts `json:"prompt"`
	CacheSalt *string `json:"cache_salt"`
}

func (q *explainRequest) request() (Request, error) {
	p, err := q.Prompt.one()
	if err != nil {
		return Request{}, err
	}
	if q.CacheSalt != nil && *q.CacheSalt == "" {
		return Request{}, httpapi.BadRequest("invalid_value", "cache_salt", "cache_salt is empty: leave it out or name the tenant")
	}
	req := Request{Prompt: p.text, Tokens: p.tokens}
	set(&req.Salt, q.CacheSalt)
	return req, nil
}

// explain answers POST /v1/explain.
func (a *api) explain(w http.ResponseWriter, r *http.Request) {
	var body explainRequest
	if err := a.read(w, r, &body); err != nil {
		a.writeError(w, err)
		return
	}
	req, err := body.request()
	if err != nil {
		a.writeError(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.opts.RequestTimeout)
	defer cancel()
	x, err := a.replica.Explain(ctx, req)
	if err != nil {
		a.writeError(w, err)
		return
	}
	httpapi.WriteJSON(w, http.StatusOK, x)
}
