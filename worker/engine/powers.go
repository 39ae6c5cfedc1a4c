package engine

import "context"

// Batcher is an optional power of an Engine: to compute one token for each of several sequences in less time than one after another,
// because weights are read once for all of them.
type Batcher interface {
	// Step appends tokens[i] to seqs[i], which are different open sequences of this engine, and returns the logits of each: slices
	// that are valid until the next call on the sequence they belong to. Bits are the same as those of Prefill with the same
	// token. On error no sequence has grown. The caller must not use the sequences meanwhile.
	Step(ctx context.Context, seqs []Sequence, tokens []int32) ([][]float32, error)
}

// Parallel is an optional power of an Engine that knows how many sequences it can serve at once, such as a server with so many slots.
type Parallel interface {
	// Sequences is that number, 0 if it is not known.
	Sequences() int
}

// Scorer is an optional power of an Engine: to give out the logits behind every token that it computes, and not of the last alone.
type Scorer interface {
	// Score is seq.Prefill(ctx, tokens) that calls visit for each token, in order, with its index in tokens and the logits behind it. These
	// have the bits that Prefill would have returned there, and are valid during the call of visit only: an engine holds those of a few
	// tokens at a time. On error visit may have been called for some. seq is an open sequence of this engine.
	Score(ctx context.Context, seq Sequence, tokens []int32, visit func(i int, logits []float32)) ([]float32, error)
}

// Generator is an optional power of a Sequence whose engine samples by itself, such as a server beside this process that hands out
// tokens and no logits. A worker then calls Generate in the place of Prefill and a Sampler.
type Generator interface {
	// Generate computes tokens at positions Len() onward, then generates until a token for which emit returns false, the end of
	// text, opts.MaxTokens tokens, or the end of ctx. emit is called from this goroutine for each token, in order; the
	// token that ends a text is not emitted. Afterwards Len() counts what Export can read, or what need not be exported
	// because it was before: all of tokens, and those of the generated ones whose K/V the engine has; or less, if getting at
	// them would cost more than they are worth, or failed: that is no error. With MaxTokens 0 it computes tokens and no more.
	Generate(ctx context.Context, tokens []int32, opts GenerateOptions, emit func(Generated) bool) error
}

// GenerateOptions say how a Generator samples.
type GenerateOptions struct {
	SampleOptions
	MaxTokens int
	// IgnoreEOS goes on behind the end of a text: the token that ends it is not generated, or is one like any other.
	IgnoreEOS bool
	// TopLogprobs asks for the log-probabilities of that many likeliest tokens at each position; 0 for none.
	TopLogprobs int
}

// Generated is one token of a Generator.
type Generated struct {
	Token   int32
	Logprob float32 // of Token; only with TopLogprobs
	Top     []TokenLogprob
}

// TokenLogprob is a token and the logarithm of its probability.
type TokenLogprob struct {
	Token   int32
	Logprob float32
}

// Resumer is an optional power of a Sequence whose engine keeps K/V of sequences that have ended, and which has to know a
// prompt's tokens besides their K/V.
type Resumer interface {
	// Resume announces the tokens that the sequence is about to hold. It is called once, before anything else, and may wait until there is
	// room for the sequence or ctx ends. Then it asks for the scope: if the engine still has K/V of an ended sequence that began with
	// the same tokens in the same scope, the sequence goes on from there, and Len() is more than 0, less than len(tokens), and a
	// multiple of BlockTokens. Sequences of different scopes never share K/V, and those of the empty scope share with none.
	// stored says how many of these tokens, from position 0 on, need no Export because they were exported or imported before. It
	// is negative if the engine cannot use K/V at the moment: then it computes everything, and imports would be for nothing.
	Resume(ctx context.Context, tokens []int32, scope func() string) (stored int, err error)
}

// PromptEncoder is an optional power of a Tokenizer that asks somebody else, who may be slow or gone.
type PromptEncoder interface {
	// EncodePrompt is Encode, or with special SpecialEncoder's EncodeSpecial, with an end and an error.
	EncodePrompt(ctx context.Context, text string, special bool) ([]int32, error)
}
