package engine

// Templater is an optional power of an Engine whose model says how the turns of a conversation become a prompt.
type Templater interface {
	ChatTemplate() ChatTemplate
}

// ChatTemplate is a Jinja template of a model, and the texts that it calls bos_token and eos_token. Source is "" if the model has none.
type ChatTemplate struct{ Source, BOS, EOS string }

// SpecialEncoder is an optional power of a Tokenizer that has special tokens, such as those which begin and end a turn.
type SpecialEncoder interface {
	// EncodeSpecial is Encode, except that the text of a special token becomes that token, and that no second token which begins a
	// text is put in front of one that the text has.
	EncodeSpecial(text string) []int32
}

// Sized is an optional power of an Engine that knows what a sequence of it costs. For others Layout.TokenBytes is taken.
type Sized interface {
	// SequenceBytes is the memory of a sequence of that many tokens.
	SequenceBytes(tokens int) int64
}
