package llama

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/eliben/go-sentencepiece"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// tokenizer is the SentencePiece vocabulary of a model file. Splitting is go-sentencepiece's; joining is ours, because the
// library replaces incomplete UTF-8 and the contract wants the bytes as they are. It is safe for concurrent use.
type tokenizer struct {
	processor *sentencepiece.Processor
	text      []string // of each token, as it stands in text
	bos, eos  int32    // -1 if the model has none
	addBOS    bool
	addSpace  bool // a space in front of the text belongs to the model's idea of a text, not to the text
	chat      chat
}

// Token types, numbered alike in GGUF and SentencePiece.
const (
	pieceNormal      = 1
	pieceUnknown     = 2
	pieceControl     = 3
	pieceUserDefined = 4
	pieceUnused      = 5
	pieceByte        = 6
)

// space stands for " " inside pieces.
const space = "▁"

// ggufTokenizer takes vocabulary and flags from a file's metadata.
func ggufTokenizer(m gguf.Metadata) (*tokenizer, error) {
	v, err := readVocabulary(m)
	if err != nil {
		return nil, err
	}
	special := func(key string) int32 {
		n, e := m.Uint("tokenizer.ggml."+key, len(v.pieces)-1)
		if errors.Is(e, gguf.ErrMissing) {
			return -1
		}
		err = errors.Join(err, e)
		return int32(n)
	}
	// A missing flag means true, as for every tool that reads these files.
	flag := func(key string) bool {
		b, e := gguf.Get[bool](m, "tokenizer.ggml."+key)
		if errors.Is(e, gguf.ErrMissing) {
			return true
		}
		err = errors.Join(err, e)
		return b
	}
	t := tokenizer{bos: special("bos_token_id"), eos: special("eos_token_id"), addSpace: flag("add_space_prefix")}
	t.addBOS = flag("add_bos_token") && t.bos >= 0
	if err != nil {
		return nil, err
	}
	if t.chat.template.Source, err = chatTemplate(m); err != nil {
		return nil, err
	}
	return t.with(v)
}

// with completes a tokenizer, of which special tokens, flags and the source of the chat template are set, by its vocabulary.
func (t tokenizer) with(v vocabulary) (*tokenizer, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	t.text = make([]string, len(v.pieces))
	for i, p := range v.pieces {
		switch v.types[i] {
		case pieceUnknown, pieceControl:
		case pieceByte:
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(p, "<0x"), ">"), 16, 8)
			if err != nil {
				return nil, fmt.Errorf("vocabulary: token %d is a byte, but its piece is %q, want <0x00> to <0xFF>", i, p)
			}
			t.text[i] = string([]byte{byte(n)})
		default:
			t.text[i] = strings.ReplaceAll(p, space, " ")
		}
	}
	var err error
	if t.processor, err = sentencepiece.NewProcessor(bytes.NewReader(v.proto())); err != nil {
		return nil, fmt.Errorf("vocabulary: %w", err)
	}
	t.chat, err = newChat(t.chat.template.Source, v, t.bos, t.eos)
	return &t, err
}

// Encode implements [engine.Tokenizer]. Where the model file asks for a token that begins a text, that token comes first.
func (t *tokenizer) Encode(text string) []int32 {
	if text == "" {
		return t.begin(0)
	}
	n := len(text)
	if t.addSpace {
		text = " " + text
	}
	tokens := t.begin(n)
	for _, p := range t.processor.Encode(text) {
		tokens = append(tokens, int32(p.ID))
	}
	return tokens
}

func (t *tokenizer) begin(capacity int) []int32 {
	tokens := make([]int32, 0, capacity/2+2)
	if t.addBOS {
		tokens = append(tokens, t.bos)
	}
	return tokens
}

// Decode implements [engine.Tokenizer]. Tokens outside the vocabulary, unknown and control tokens have no text.
func (t *tokenizer) Decode(tokens []int32) string {
	var b strings.Builder
	for _, id := range tokens {
		if id >= 0 && int(id) < len(t.text) {
			b.WriteString(t.text[id])
		}
	}
	// Only where a text begins was a space added: with a token of its own in front, if the model has one. Without one the
	// beginning cannot be told from a continuation, so that the space stays.
	if t.addSpace && t.addBOS && len(tokens) > 0 && tokens[0] == t.bos {
		return strings.TrimPrefix(b.String(), " ")
	}
	return b.String()
}

// EOS implements [engine.Tokenizer].
func (t *tokenizer) EOS() int32 { return t.eos }

// Vocab implements [engine.Tokenizer].
func (t *tokenizer) Vocab() int { return len(t.text) }

// vocabulary is the three parallel lists of a model file.
type vocabulary struct {
	pieces []string
	scores []float64
	types  []int64
}

func readVocabulary(m gguf.Metadata) (vocabulary, error) {
	kind, err := gguf.Get[string](m, "tokenizer.ggml.model")
	if err != nil {
		return vocabulary{}, err
	}
	if kind != "llama" {
		return vocabulary{}, fmt.Errorf("tokenizer %q is not supported, only llama (SentencePiece pieces with scores)", kind)
	}
	var v vocabulary
	var errs [3]error
	v.pieces, errs[0] = gguf.Get[[]string](m, "tokenizer.ggml.tokens")
	v.scores, errs[1] = gguf.Get[[]float64](m, "tokenizer.ggml.scores")
	v.types, errs[2] = gguf.Get[[]int64](m, "tokenizer.ggml.token_type")
	if err := errors.Join(errs[:]...); err != nil {
		return v, err
	}
	return v, nil
}

// check refuses a vocabulary that the library cannot take.
func (v vocabulary) check() error {
	n := len(v.pieces)
	if n == 0 || n > maxVocab || len(v.scores) != n || len(v.types) != n {
		return fmt.Errorf("vocabulary has %d pieces, %d scores and %d types, want as many of each, 1 to %d",
			n, len(v.scores), len(v.types), maxVocab)
	}
	unknown := 0
	for i, t := range v.types {
		if t < pieceNormal || t > pieceByte {
			return fmt.Errorf("vocabulary: token %d has unknown type %d", i, t)
		}
		if t == pieceUnknown {
			unknown++
		}
		if len(v.pieces[i]) > maxPieceBytes {
			return fmt.Errorf("vocabulary: piece %d has %d bytes, want at most %d", i, len(v.pieces[i]), maxPieceBytes)
		}
		if math.IsNaN(v.scores[i]) {
			return fmt.Errorf("vocabulary: score of token %d is not a number", i)
		}
	}
	if unknown != 1 {
		return fmt.Errorf("vocabulary has %d unknown tokens, want 1", unknown)
	}
	return nil
}

const maxPieceBytes = 1 << 12

// proto encodes the vocabulary as the SentencePiece ModelProto that the library reads. Field numbers are those of
// sentencepiece_model.proto.
func (v vocabulary) proto() []byte {
	const (
		modelPieces, modelTrainer, modelNormalizer       = 1, 2, 3
		piecePiece, pieceScore, pieceType                = 1, 2, 3
		trainerModelType, trainerByteFallback            = 3, 35
		typeBPE                                          = 2
		normalizerDummyPrefix, normalizerExtraWhitespace = 3, 4
	)
	var out, msg []byte
	message := func(number protowire.Number) {
		out = protowire.AppendTag(out, number, protowire.BytesType)
		out = protowire.AppendBytes(out, msg)
		msg = msg[:0]
	}
	varint := func(number protowire.Number, n uint64) {
		msg = protowire.AppendTag(msg, number, protowire.VarintType)
		msg = protowire.AppendVarint(msg, n)
	}
	piece := func(text string, score float64, typ int64) {
		msg = protowire.AppendTag(msg, piecePiece, protowire.BytesType)
		msg = protowire.AppendString(msg, text)
		msg = protowire.AppendTag(msg, pieceScore, protowire.Fixed32Type)
		msg = protowire.AppendFixed32(msg, math.Float32bits(float32(score)))
		varint(pieceType, uint64(typ))
		message(modelPieces)
	}
	longest, bytePieces := 0, 0
	for i, p := range v.pieces {
		piece(p, v.scores[i], v.types[i])
		longest = max(longest, len(p))
		if v.types[i] == pieceByte {
			bytePieces++
		}
	}
	// The library looks up pairs of symbols in a buffer as long as the longest piece, and panics on a longer pair. A
	// symbol is a piece or one character (4 bytes), so a piece of twice that makes every pair fit. No text can give
	// this token: it would have to be the pair of two symbols that are both full length and all 0xFF, which is not UTF-8.
	longest = max(longest, 4)
	piece(strings.Repeat("\xff", 2*longest+1), 0, pieceUnused)

	varint(trainerModelType, typeBPE)
	if bytePieces > 0 {
		varint(trainerByteFallback, 1)
	}
	message(modelTrainer)
	varint(normalizerDummyPrefix, 0)
	varint(normalizerExtraWhitespace, 0)
	message(modelNormalizer)
	return out
}
