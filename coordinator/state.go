package coordinator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

const (
	stateFormat   = 1
	maxStateBytes = 64 << 20
)

// stateFile keeps records on this machine's disk: what a coordinator wants to stand in Redis, whatever Redis forgets.
//
// A record is in the file before it is in Redis. If the coordinator dies in between, it finds its intention at the next start and
// Reconcile carries it out, which is right for a revocation that nobody may have been told of; if Redis answered that the write had not
// happened, the intention is taken back. The file is replaced as a whole, by rename, so that it is never half written.
type stateFile struct {
	path string

	mu      sync.Mutex
	saved   map[string]string // what the file holds: stored form by model
	intents map[string]string // about to be written to Redis
	stale   bool              // the file holds an intention that has ended
}

// stateDocument is the file's content.
type stateDocument struct {
	V      int                        `json:"v"`
	Models map[string]json.RawMessage `json:"models"` // records in their stored form
}

// openState reads the file, which may not exist yet. A damaged one is an error (ErrState): going on without it could bring revoked
// weights back.
func openState(path string) (*stateFile, map[string]Stored, error) {
	s := &stateFile{path: path, saved: map[string]string{}, intents: map[string]string{}}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		// Found out now, not with the first change: whether the file can be written.
		return s, nil, s.replace(nil)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStateBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrState, err)
	}
	records, err := decodeState(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrState, path, err)
	}
	for name, r := range records {
		s.saved[name] = string(r.raw)
	}
	return s, records, nil
}

func decodeState(b []byte) (map[string]Stored, error) {
	if len(b) > maxStateBytes {
		return nil, fmt.Errorf("longer than %d bytes", maxStateBytes)
	}
	var doc stateDocument
	if err := decodeStrict(b, &doc); err != nil {
		return nil, err
	}
	if doc.V != stateFormat || len(doc.Models) > maxModels {
		return nil, fmt.Errorf("format %d with %d models, want %d with at most %d", doc.V, len(doc.Models), stateFormat, maxModels)
	}
	records := make(map[string]Stored, len(doc.Models))
	for name, raw := range doc.Models {
		r, err := DecodeRecord(name, raw)
		if err != nil {
			return nil, fmt.Errorf("model %.64q: %w", name, err)
		}
		// Encoded again, since spaces that an editor may have put in do not belong to the stored form.
		if raw, err = r.Encode(); err != nil {
			return nil, fmt.Errorf("model %.64q: %w", name, err)
		}
		records[name] = Stored{Record: r, raw: raw}
	}
	return records, nil
}

// intend writes raw for a model before Redis is asked to hold it.
func (s *stateFile) intend(model string, raw []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intents[model] = string(raw)
	return s.flush()
}

// settle ends the intention raw: confirmed says what the model's record is now, nil if it is not known to have changed.
func (s *stateFile) settle(model string, raw, confirmed []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.intents[model] == string(raw) {
		delete(s.intents, model)
	} else {
		s.stale = true // a later request's stands in the file
	}
	if confirmed != nil {
		s.saved[model] = string(confirmed)
		if string(confirmed) == string(raw) && !s.stale {
			return nil // the file has it
		}
	}
	return s.flush()
}

// doubt ends an intention of which nobody knows whether Redis has it: the file keeps it until the next round.
func (s *stateFile) doubt(model string, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.intents[model] == string(raw) {
		delete(s.intents, model)
	}
	s.stale = true
}

// keep brings the file up to date with what was read from Redis. It writes only if something has changed.
func (s *stateFile) keep(records map[string]Stored) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.stale
	for name, r := range records {
		if s.saved[name] != string(r.raw) {
			s.saved[name], changed = string(r.raw), true
		}
	}
	if !changed {
		return nil
	}
	return s.flush()
}

// flush writes what is saved, with the intentions over it. mu is held.
func (s *stateFile) flush() error {
	all := maps.Clone(s.saved)
	maps.Copy(all, s.intents)
	doc := make(map[string]json.RawMessage, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		doc[name] = json.RawMessage(all[name])
	}
	if err := s.replace(doc); err != nil {
		s.stale = true // tried again by the next round
		return err
	}
	s.stale = false
	return nil
}

// replace makes doc the file's content: it is either there in full after a crash, or not at all.
func (s *stateFile) replace(doc map[string]json.RawMessage) (err error) {
	fail := func(err error) error { return fmt.Errorf("%w: %w", ErrState, err) }
	if doc == nil {
		doc = map[string]json.RawMessage{}
	}
	b, err := json.Marshal(stateDocument{V: stateFormat, Models: doc})
	if err != nil {
		return fail(err)
	}
	if len(b) >= maxStateBytes {
		return fail(fmt.Errorf("%d bytes, at most %d", len(b), maxStateBytes))
	}
	dir := filepath.Dir(s.path)
	f, err := os.CreateTemp(dir, filepath.Base(s.path)+".new-*")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fail(err)
	}
	if err = os.Rename(f.Name(), s.path); err != nil {
		return fail(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fail(err)
	}
	if err = errors.Join(d.Sync(), d.Close()); err != nil { // or the rename itself could be lost
		return fail(err)
	}
	return nil
}
