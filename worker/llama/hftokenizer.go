package llama

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/kvtier/kvtier/worker/engine"
)

// hfTokenizer is a tokenizer.json, as far as it decides how text becomes tokens.
type hfTokenizer struct {
	AddedTokens []addedToken `json:"added_tokens"`
	Normalizer  *step        `json:"normalizer"`
	Split       *step        `json:"pre_tokenizer"`
	After       *step        `json:"post_processor"`
	Model       struct {
		Type         string         `json:"type"`
		Vocab        map[string]int `json:"vocab"`
		Merges       []merge        `json:"merges"`
		Unknown      *string        `json:"unk_token"`
		ByteFallback bool           `json:"byte_fallback"`
		IgnoreMerges bool           `json:"ignore_merges"`
		Dropout      *float64       `json:"dropout"`
		Prefix       *string        `json:"continuing_subword_prefix"`
		Suffix       *string        `json:"end_of_word_suffix"`
	} `json:"model"`
}

type addedToken struct {
	ID      int    `json:"id"`
	Content string `json:"content"`
	Special bool   `json:"special"`
	LStrip  bool   `json:"lstrip"`
	RStrip  bool   `json:"rstrip"`
	Word    bool   `json:"single_word"`
}

// step is one stage around the model: a normalizer, a pre-tokenizer or a post-processor.
type step struct {
	Type        string `json:"type"`
	Normalizers []step `json:"normalizers"`
	Prepend     string `json:"prepend"`
	Content     string `json:"content"`
	Pattern     struct {
		String string `json:"String"`
	} `json:"pattern"`
	Replacement   string `json:"replacement"`
	PrependScheme string `json:"prepend_scheme"`
	Split         *bool  `json:"split"`
	Single        []struct {
		Special  *struct{ ID string } `json:"SpecialToken"`
		Sequence *struct{ ID string } `json:"Sequence"`
	} `json:"single"`
	Special map[string]struct{ IDs []int } `json:"special_tokens"`
}

// merge is a pair, in older files one string with a space in between.
type merge [2]string

func (m *merge) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		left, right, ok := strings.Cut(s, " ")
		if !ok {
			return fmt.Errorf("merge %.100q is no pair", s)
		}
		*m = merge{left, right}
		return nil
	}
	var pair []string
	if err := json.Unmarshal(b, &pair); err != nil || len(pair) != 2 {
		return errors.New("a merge is neither a string nor a pair")
	}
	*m = merge{pair[0], pair[1]}
	return nil
}

// parseTokenizer reads tokenizers that split text as SentencePiece does: BPE over characters with bytes for what is left, the kind
// of Llama 1 and 2 and of most small models of the family. Byte-level BPE, as of Llama 3 and GPT-2, is refused by name, and so is every
// stage whose effect would be another.
func parseTokenizer(data []byte, c config, template string) (*tokenizer, error) {
	var f hfTokenizer
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	t := tokenizer{bos: -1, eos: -1, chat: chat{template: engine.ChatTemplate{Source: template}}}
	if len(c.EOS) == 1 {
		t.eos = int32(c.EOS[0])
	}
	var err error
	if t.addSpace, err = f.normalizes(); err != nil {
		return nil, err
	}
	if err := f.splitsNothing(); err != nil {
		return nil, err
	}
	if t.bos, err = f.first(); err != nil {
		return nil, err
	}
	if t.addBOS = t.bos >= 0; !t.addBOS && len(c.BOS) == 1 {
		t.bos = int32(c.BOS[0]) // chat templates name it
	}
	v, err := f.vocabulary(c.Vocab)
	if err != nil {
		return nil, err
	}
	for name, id := range map[string]int32{"bos_token_id, or the token in front of a text,": t.bos, "eos_token_id": t.eos} {
		if id < -1 || int(id) >= len(v.pieces) {
			return nil, fmt.Errorf("%s is %d, outside the vocabulary of %d", name, id, len(v.pieces))
		}
	}
	return t.with(v)
}

// normalizes accepts spaces that become ▁, with or without one in front of the text.
func (f *hfTokenizer) normalizes() (addSpace bool, err error) {
	steps, replaced := []step(nil), false
	if n := f.Normalizer; n != nil {
		if steps = []step{*n}; n.Type == "Sequence" {
			steps = n.Normalizers
		}
	}
	for i, n := range steps {
		switch {
		case n.Type == "Prepend" && n.Prepend == space && i == 0:
			addSpace = true
		case n.Type == "Replace" && n.Pattern.String == " " && n.Content == space && !replaced:
			replaced = true
		default:
			return false, fmt.Errorf("normalizer %q is not supported, only a ▁ in front and for every space", n.Type)
		}
	}
	if s := f.Split; !replaced && !(s != nil && s.Type == "Metaspace") {
		return false, fmt.Errorf("spaces do not become ▁: this kind of tokenizer%s is not supported, only the SentencePiece kind", f.kind())
	}
	return addSpace, nil
}

// kind names what is most likely in a file that is refused.
func (f *hfTokenizer) kind() string {
	if s := f.Split; s != nil && (s.Type == "ByteLevel" || s.Type == "Sequence") {
		return " (byte-level BPE)"
	}
	return ""
}

func (f *hfTokenizer) splitsNothing() error {
	switch s := f.Split; {
	case s == nil:
		return nil
	case s.Type != "Metaspace":
		return fmt.Errorf("pre_tokenizer %q is not supported, only none, or a Metaspace that adds and splits nothing", s.Type)
	case s.Replacement != space || s.PrependScheme != "never" || s.Split == nil || *s.Split:
		return errors.New("this Metaspace pre_tokenizer is not supported, only one with prepend_scheme never and split false")
	}
	return nil
}

// first is the token that begins every text, -1 for none.
func (f *hfTokenizer) first() (int32, error) {
	p := f.After
	if p == nil {
		return -1, nil
	}
	if p.Type != "TemplateProcessing" {
		return 0, fmt.Errorf("post_processor %q is not supported, only TemplateProcessing", p.Type)
	}
	s := p.Single
	switch {
	case len(s) == 1 && s[0].Sequence != nil:
		return -1, nil
	case len(s) == 2 && s[0].Special != nil && s[1].Sequence != nil:
		if ids := p.Special[s[0].Special.ID].IDs; len(ids) == 1 && ids[0] >= 0 && ids[0] < maxVocab {
			return int32(ids[0]), nil
		}
	}
	return 0, errors.New("this template of the post_processor is not supported, only one with at most one token in front of the text")
}

// maxMergedBytes bounds pieces, because every way to split one is looked at.
const maxMergedBytes = 256

// vocabulary turns the model's pieces and merges into the lists that a GGUF file has. The embedding may have more rows than there
// are pieces: the others are unused tokens.
func (f *hfTokenizer) vocabulary(rows int) (vocabulary, error) {
	m := &f.Model
	switch {
	case m.Type != "BPE" && m.Type != "":
		return vocabulary{}, fmt.Errorf("model %q is not supported, only BPE", m.Type)
	case !m.ByteFallback || m.Unknown == nil:
		return vocabulary{}, errors.New("BPE without byte_fallback and unk_token is not supported")
	case m.IgnoreMerges || m.Dropout != nil || m.Prefix != nil && *m.Prefix != "" || m.Suffix != nil && *m.Suffix != "":
		return vocabulary{}, errors.New("BPE with ignore_merges, dropout, continuing_subword_prefix or end_of_word_suffix is not supported")
	case len(m.Vocab) > rows:
		return vocabulary{}, fmt.Errorf("the vocabulary has %d pieces, but config.json says vocab_size %d", len(m.Vocab), rows)
	}
	// rows is no bound on memory before it is seen to be about what there is.
	if slack := len(m.Vocab) + len(f.AddedTokens) + 1<<16; rows > slack {
		return vocabulary{}, fmt.Errorf("config.json says vocab_size %d, but there are only %d pieces", rows, len(m.Vocab))
	}
	v := vocabulary{pieces: make([]string, rows), scores: make([]float64, rows), types: make([]int64, rows)}
	place := func(piece string, id int, kind int64) error {
		if id < 0 || id >= rows {
			return fmt.Errorf("piece %.100q has token %d, outside vocab_size %d", piece, id, rows)
		}
		if len(piece) > maxMergedBytes {
			return fmt.Errorf("piece %.100q has %d bytes, want at most %d", piece, len(piece), maxMergedBytes)
		}
		if v.types[id] != 0 && v.pieces[id] != piece {
			return fmt.Errorf("pieces %.100q and %.100q have the same token %d", v.pieces[id], piece, id)
		}
		v.pieces[id], v.types[id] = piece, kind
		return nil
	}
	for piece, id := range m.Vocab {
		kind := int64(pieceNormal)
		if len(piece) == 6 && strings.HasPrefix(piece, "<0x") && piece[5] == '>' {
			kind = pieceByte
		}
		if err := place(piece, id, kind); err != nil {
			return v, err
		}
	}
	for _, a := range f.AddedTokens {
		kind := int64(pieceUserDefined)
		if a.Special {
			kind = pieceControl
		} else if a.LStrip || a.RStrip || a.Word || a.Content == "" || strings.ContainsAny(a.Content, " "+space) {
			return v, fmt.Errorf("added token %.100q is not supported: it takes spaces with it, or stands for whole words only", a.Content)
		}
		if err := place(a.Content, a.ID, kind); err != nil {
			return v, err
		}
	}
	unknown, ok := m.Vocab[*m.Unknown]
	if !ok {
		return v, fmt.Errorf("unk_token %.100q is not in the vocabulary", *m.Unknown)
	}
	v.types[unknown] = pieceUnknown
	for id := range v.types {
		if v.types[id] == 0 { // a row of the embedding without a piece: no text gives it or comes of it
			v.types[id] = pieceControl
		}
	}
	return v, v.rank(m.Vocab, m.Merges)
}

// rank gives each piece the rank of its merges as its score. Where only the piece decides, as in SentencePiece, that is the same
// tokenizer: every pair of pieces that makes a piece must be a merge, and the merges that make the same piece must have ranks next to each other.
func (v vocabulary) rank(ids map[string]int, merges []merge) error {
	pairs, last := make(map[merge]bool, len(merges)), ""
	ranked := make(map[string]bool)
	normal := func(piece string) bool { id, ok := ids[piece]; return ok && v.types[id] == pieceNormal }
	for rank, m := range merges {
		piece := m[0] + m[1]
		if !normal(piece) || !normal(m[0]) || !normal(m[1]) {
			return fmt.Errorf("merge %d of %.100q and %.100q is not one of ordinary pieces", rank, m[0], m[1])
		}
		if piece != last && ranked[piece] {
			return fmt.Errorf("merges that make %.100q have ranks apart: this is not the SentencePiece kind of vocabulary", piece)
		}
		if !ranked[piece] {
			v.scores[ids[piece]] = -float64(rank)
		}
		ranked[piece], last, pairs[m] = true, piece, true
	}
	for piece, id := range ids {
		if v.types[id] != pieceNormal || utf8.RuneCountInString(piece) < 2 {
			continue
		}
		if !ranked[piece] {
			return fmt.Errorf("piece %.100q is longer than a character, but no merge makes it", piece)
		}
		for i := range piece {
			if l, r := piece[:i], piece[i:]; i > 0 && normal(l) && normal(r) && !pairs[merge{l, r}] {
				return fmt.Errorf("%.100q and %.100q make a piece, but are no merge: this is not the SentencePiece kind of vocabulary", l, r)
			}
		}
	}
	return nil
}
