package warmup

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Format says how a file is read.
type Format uint8

// Formats.
const (
	JSONL Format = iota // one JSON object per line
	Lines               // one prompt per line, empty ones left out
	Whole               // the file is one prompt
)

// Source is a manifest: files that stay as they are while the job runs.
type Source struct {
	Files     []File
	Templates *Templates
	// Salt is the tenant of prompts that name none.
	Salt string
}

// File is one file of a source.
type File struct {
	Path   string
	Format Format
	// Text, if not "", is the content, and Path only a name for it.
	Text string
}

// open returns the content.
func (f File) open() (io.ReadSeekCloser, error) {
	if f.Text != "" {
		return nopCloser{strings.NewReader(f.Text)}, nil
	}
	return os.Open(f.Path)
}

type nopCloser struct{ *strings.Reader }

func (nopCloser) Close() error { return nil }

// TextSource is a manifest of JSONL in memory. It may not name files.
func TextSource(name, jsonl string) Source {
	return Source{Files: []File{{Path: name, Format: JSONL, Text: jsonl}}, Templates: &Templates{}}
}

// OpenSource finds the files that patterns name: paths or globs. Files that end in .jsonl, .ndjson or .json are JSONL, others have
// one prompt per line, or are one prompt each with whole. "-" reads stdin into a temporary file; the returned function removes it.
func OpenSource(patterns []string, whole bool, stdin io.Reader) (s Source, cleanup func(), err error) {
	cleanup = func() {}
	s.Templates = &Templates{}
	for _, p := range patterns {
		if p == "-" {
			path, err := spool(stdin)
			if err != nil {
				return s, cleanup, err
			}
			cleanup = func() { _ = os.Remove(path) }
			s.Files = append(s.Files, File{Path: path, Format: sniff(path)})
			continue
		}
		paths := []string{p}
		if _, err := os.Stat(p); err != nil {
			if paths, err = filepath.Glob(p); err != nil {
				return s, cleanup, fmt.Errorf("%s: %w", p, err)
			}
			if len(paths) == 0 {
				return s, cleanup, fmt.Errorf("%s: no such file, and as a pattern it matches none", p)
			}
			slices.Sort(paths)
		}
		for _, path := range paths {
			f := File{Path: path, Format: Lines}
			switch ext := strings.ToLower(filepath.Ext(path)); {
			case ext == ".jsonl" || ext == ".ndjson" || ext == ".json":
				f.Format = JSONL
			case whole:
				f.Format = Whole
			}
			s.Files = append(s.Files, f)
			if s.Templates.Dir == "" {
				s.Templates.Dir = filepath.Dir(path)
			}
		}
	}
	if len(s.Files) > 1<<16 {
		return s, cleanup, fmt.Errorf("%d files, at most %d", len(s.Files), 1<<16)
	}
	return s, cleanup, nil
}

func spool(r io.Reader) (path string, err error) {
	f, err := os.CreateTemp("", "kvtier-warmup-*.in")
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, r)
	return f.Name(), err
}

// sniff tells JSONL from prompts by the first character that is no space.
func sniff(path string) Format {
	f, err := os.Open(path)
	if err != nil {
		return Lines
	}
	defer f.Close()
	b := make([]byte, 512)
	n, _ := io.ReadFull(f, b)
	if strings.HasPrefix(strings.TrimLeft(string(b[:n]), " \t\r\n"), "{") {
		return JSONL
	}
	return Lines
}

// place is where an item stands, so that it need not be kept.
type place struct {
	file   int
	offset int64
	number int // line
}

// each calls fn with every line that is not empty, in order; the bytes are valid during the call. fn's error ends it.
func (s Source) each(fn func(p place, raw []byte) error) error {
	for i, f := range s.Files {
		if err := s.eachOf(i, f, fn); err != nil {
			return err
		}
	}
	return nil
}

func (s Source) eachOf(i int, f File, fn func(place, []byte) error) error {
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	if f.Format == Whole {
		b, err := io.ReadAll(io.LimitReader(in, MaxLineBytes+1))
		if err != nil {
			return err
		}
		if len(b) > MaxLineBytes {
			b = nil
		}
		return fn(place{i, 0, 1}, b)
	}
	lines := newLineReader(in)
	for {
		l, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if l.bytes != nil && len(strings.TrimSpace(string(l.bytes))) == 0 {
			continue
		}
		if err := fn(place{i, l.offset, l.number}, l.bytes); err != nil {
			return err
		}
	}
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// Empty reports whether there is no line that is not empty.
func (s Source) Empty() (bool, error) {
	err := s.each(func(place, []byte) error { return errEnough })
	if errors.Is(err, errEnough) {
		return false, nil
	}
	return err == nil, err
}

// Check reports whether there is anything to warm: it returns the first line that cannot be used, if strict, or if there is no other.
func (s Source) Check(strict bool) error {
	var first error
	prompts := 0
	err := s.each(func(p place, raw []byte) error {
		_, ok, err := s.parse(p, raw)
		switch {
		case err != nil && first == nil:
			first = err
		case ok:
			prompts++
		}
		if strict && first != nil || !strict && prompts > 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return err
	case first != nil && (strict || prompts == 0):
		return first
	case prompts == 0:
		return errors.New("there is no prompt in the manifest")
	}
	return nil
}

// parse reads an item from the bytes of its line, which are nil if it was too long. It returns ok false for a definition.
func (s Source) parse(p place, raw []byte) (it Item, ok bool, err error) {
	f := s.Files[p.file]
	switch {
	case raw == nil:
		err = broken("longer than %d bytes", MaxLineBytes)
	case f.Format == JSONL:
		it, ok, err = parseLine(raw, s.Templates)
	default:
		it, ok = Item{Prompt: string(raw)}, true
	}
	if err != nil {
		return it, false, &LineError{f.Path, p.number, err}
	}
	if it.Salt == "" {
		it.Salt = s.Salt
	}
	return it, ok, nil
}

// Items reads all items, in order; it ends with the first line that cannot be used.
func (s Source) Items() iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		err := s.each(func(p place, raw []byte) error {
			it, ok, err := s.parse(p, raw)
			if err == nil && ok && !yield(it, nil) {
				err = errEnough
			}
			return err
		})
		if err != nil && !errors.Is(err, errEnough) {
			yield(Item{}, err)
		}
	}
}

// reread reads an item again.
func (s Source) reread(p place) (Item, error) {
	f := s.Files[p.file]
	in, err := f.open()
	if err != nil {
		return Item{}, err
	}
	defer in.Close()
	if f.Format == Whole {
		var it Item
		err := s.eachOf(p.file, f, func(_ place, raw []byte) (err error) {
			it, _, err = s.parse(p, raw)
			return err
		})
		return it, err
	}
	if _, err := in.Seek(p.offset, io.SeekStart); err != nil {
		return Item{}, err
	}
	l, err := newLineReader(in).next()
	if err != nil {
		return Item{}, fmt.Errorf("%s: line %d: %w", f.Path, p.number, err)
	}
	it, ok, err := s.parse(p, l.bytes)
	if err == nil && !ok {
		err = &LineError{f.Path, p.number, errors.New("the manifest has changed")}
	}
	return it, err
}
