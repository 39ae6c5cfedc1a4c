package warmup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/kvtier/kvtier/internal/strictjson"
)

// Limits on a manifest: it may come over a network.
const (
	// MaxLineBytes bounds a line; no worker takes a longer request.
	MaxLineBytes = 1 << 20
	maxIDBytes   = 256
	maxSaltBytes = 256
	maxPriority  = 1000
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Item is one prompt of a manifest.
type Item struct {
	ID         string
	Prompt     string // one of Prompt, Tokens and Messages
	Tokens     []int32
	Messages   []Message
	Salt       string // of the tenant
	Priority   int    // higher first
	Pin        bool
	ExpectHits int // how many requests are expected to begin like this; 0 for unknown
}

// LineError is a line that cannot be used. Reading goes on behind it.
type LineError struct {
	File string
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("%s: line %d: %v", e.File, e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// ErrLine is what every broken line's error wraps.
var ErrLine = errors.New("broken line")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrLine, fmt.Errorf(format, args...))
}

// line is what a manifest's line may hold.
type line struct {
	ID         string              `json:"id"`
	Prompt     *string             `json:"prompt"`
	Tokens     []int32             `json:"tokens"`
	Messages   []Message           `json:"messages"`
	Template   string              `json:"template"`
	Vars       map[string]variable `json:"vars"`
	Tenant     *string             `json:"tenant"`
	CacheSalt  *string             `json:"cache_salt"`
	Priority   int                 `json:"priority"`
	Pin        bool                `json:"pin"`
	ExpectHits int                 `json:"expect_hits"`

	// A definition instead of a prompt.
	Define string  `json:"define"`
	Text   *string `json:"text"`
	File   string  `json:"file"`
}

// parseLine reads one line of JSONL. It returns ok false for a definition, which it has added to t.
func parseLine(raw []byte, t *Templates) (it Item, ok bool, err error) {
	var l line
	if err := strictjson.Decode(raw, &l, strictjson.Options{}); err != nil {
		if e, ok := errors.AsType[*strictjson.Error](err); ok {
			return it, false, broken("%s", e.Says("it"))
		}
		return it, false, broken("%w", err)
	}
	if l.Define != "" {
		return it, false, l.define(t)
	}
	it, err = l.item(t)
	return it, err == nil, err
}

func (l *line) define(t *Templates) error {
	switch {
	case l.Prompt != nil || l.Tokens != nil || l.Messages != nil || l.Template != "":
		return broken("a definition has no prompt")
	case (l.Text == nil) == (l.File == ""):
		return broken("define %q: give either text or file", l.Define)
	}
	text := ""
	if l.Text != nil {
		text = *l.Text
	} else {
		var err error
		if text, err = t.readFile(l.File); err != nil {
			return broken("define %q: %w", l.Define, err)
		}
	}
	return t.define(l.Define, text)
}

func (l *line) item(t *Templates) (it Item, err error) {
	given := 0
	for _, has := range []bool{l.Prompt != nil, l.Tokens != nil, l.Messages != nil, l.Template != ""} {
		if has {
			given++
		}
	}
	switch {
	case l.Text != nil || l.File != "":
		return it, broken("text and file go with define")
	case given != 1:
		return it, broken("give one of prompt, tokens, messages and template, not %d of them", given)
	case l.Vars != nil && l.Template == "":
		return it, broken("vars go with template")
	case l.Tenant != nil && l.CacheSalt != nil && *l.Tenant != *l.CacheSalt:
		return it, broken("tenant and cache_salt are two names of one thing and differ")
	case len(l.ID) > maxIDBytes:
		return it, broken("id has %d bytes, at most %d", len(l.ID), maxIDBytes)
	case l.Priority < -maxPriority || l.Priority > maxPriority:
		return it, broken("priority is %d, want %d to %d", l.Priority, -maxPriority, maxPriority)
	case l.ExpectHits < 0 || l.ExpectHits > 1<<30:
		return it, broken("expect_hits is %d, want 0 to %d", l.ExpectHits, 1<<30)
	}
	it = Item{ID: l.ID, Tokens: l.Tokens, Messages: l.Messages, Priority: l.Priority, Pin: l.Pin, ExpectHits: l.ExpectHits}
	for _, s := range []*string{l.Tenant, l.CacheSalt} {
		if s != nil {
			it.Salt = *s
		}
	}
	if len(it.Salt) > maxSaltBytes {
		return it, broken("cache_salt has %d bytes, at most %d", len(it.Salt), maxSaltBytes)
	}
	switch {
	case l.Prompt != nil:
		it.Prompt = *l.Prompt
	case l.Template != "":
		if it.Prompt, err = t.expand(l.Template, l.Vars); err != nil {
			return it, err
		}
	}
	for i, token := range it.Tokens {
		if token < 0 {
			return it, broken("token %d at position %d is negative", token, i)
		}
	}
	if it.Prompt == "" && len(it.Tokens) == 0 && len(it.Messages) == 0 {
		return it, broken("the prompt is empty")
	}
	return it, nil
}

// rawLine is a line as it stands in a file.
type rawLine struct {
	offset int64
	number int
	bytes  []byte // without its end; nil if it was too long
}

// lineReader splits a stream into lines and bounds their length.
type lineReader struct {
	in     *bufio.Reader
	offset int64
	number int
	buf    []byte
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{in: bufio.NewReaderSize(r, 64<<10)} }

// next returns the next line, whose bytes are valid until the next call; io.EOF at the end.
func (r *lineReader) next() (rawLine, error) {
	r.number++
	l := rawLine{offset: r.offset, number: r.number}
	r.buf = r.buf[:0]
	long := false
	for {
		piece, err := r.in.ReadSlice('\n')
		r.offset += int64(len(piece))
		if long = long || len(r.buf)+len(piece) > MaxLineBytes+1; !long {
			r.buf = append(r.buf, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && l.offset == r.offset:
			return l, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return l, err
		}
		if !long {
			l.bytes = bytes.TrimRight(r.buf, "\r\n")
			if l.bytes == nil {
				l.bytes = []byte{}
			}
		}
		return l, nil
	}
}
