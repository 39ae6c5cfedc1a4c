package llama

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/kvtier/kvtier/worker/llama/internal/gguf"
)

// Pieces returns the text of every token of the model file that r holds in its first size bytes, as raw bytes: those of a
// character may be spread over tokens. Control and unknown tokens have none. It knows the vocabularies that GGUF calls llama
// (SentencePiece) and gpt2 (byte-level BPE), and is for engines that need no more of the file than this.
func Pieces(r io.ReaderAt, size int64) ([]string, error) {
	f, err := gguf.Parse(r, size)
	if err != nil {
		return nil, err
	}
	kind, err := gguf.Get[string](f.Metadata, "tokenizer.ggml.model")
	if err != nil {
		return nil, err
	}
	pieces, err := gguf.Get[[]string](f.Metadata, "tokenizer.ggml.tokens")
	if err != nil {
		return nil, err
	}
	types, err := gguf.Get[[]int64](f.Metadata, "tokenizer.ggml.token_type")
	if err != nil {
		return nil, err
	}
	if len(types) != len(pieces) || len(pieces) > maxVocab {
		return nil, fmt.Errorf("vocabulary has %d pieces and %d types, want as many of each, at most %d", len(pieces), len(types), maxVocab)
	}
	verbatim := func(piece string) string { return piece }
	unescape := func(piece string) string { return strings.ReplaceAll(piece, space, " ") }
	normal, user := unescape, unescape
	switch kind {
	case "llama":
	case "gpt2":
		normal, user = byteLevelText, verbatim
	default:
		return nil, fmt.Errorf("vocabulary of kind %q is not supported, only llama and gpt2", kind)
	}
	out := make([]string, len(pieces))
	for i, p := range pieces {
		switch types[i] {
		case pieceUnknown, pieceControl:
		case pieceByte:
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(p, "<0x"), ">"), 16, 8)
			if err != nil {
				return nil, fmt.Errorf("vocabulary: token %d is a byte, but its piece is %.20q, want <0x00> to <0xFF>", i, p)
			}
			out[i] = string([]byte{byte(n)})
		case pieceUserDefined:
			out[i] = user(p)
		default:
			out[i] = normal(p)
		}
	}
	return out, nil
}

// byteLevelText undoes byte-level BPE's alphabet: printable bytes stand for themselves, the others for U+0100 onward in order.
func byteLevelText(piece string) string {
	b := make([]byte, 0, len(piece))
	for _, r := range piece {
		if c, ok := byteLevel[r]; ok {
			b = append(b, c)
		} else {
			b = append(b, string(r)...)
		}
	}
	return string(b)
}

var byteLevel = func() map[rune]byte {
	m, next := make(map[rune]byte, 256), rune(0x100)
	for c := range 256 {
		if c >= '!' && c <= '~' || c >= 0xa1 && c <= 0xac || c >= 0xae {
			m[rune(c)] = byte(c)
		} else {
			m[next], next = byte(c), next+1
		}
	}
	return m
}()
