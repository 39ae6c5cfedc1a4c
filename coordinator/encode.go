package coordinator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Encode returns the record's stored form: one line of JSON, so that an operator can read it with redis-cli. Equal records encode to
// equal bytes (struct order, sorted map keys).
func (r Record) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("%w: encode: %w", ErrRecord, err)
	}
	if len(b) > MaxRecordBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrRecord, len(b), MaxRecordBytes)
	}
	return b, nil
}

// DecodeRecord reads the stored form of model's record. Unknown fields are refused: a record with more in it than
// this binary understands must not be half obeyed, and rewriting it would lose them.
func DecodeRecord(model string, b []byte) (Record, error) {
	if len(b) > MaxRecordBytes {
		return Record{}, fmt.Errorf("%w: more than %d bytes", ErrRecord, MaxRecordBytes)
	}
	var r Record
	if err := decodeStrict(b, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Model != model {
		return Record{}, fmt.Errorf("%w: it is the record of model %.64q", ErrRecord, r.Model)
	}
	if err := r.Validate(); err != nil {
		return Record{}, err
	}
	return r.clone(), nil
}

func decodeStrict(b []byte, dst any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(dst); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// Sum names the content of a stored record. Two records of one generation with different sums are a fork: Redis lost a
// write and the generation was given out again.
type Sum string

// sumOf is never "" for a record that exists.
func sumOf(raw []byte) Sum {
	h := sha256.Sum256(raw)
	return Sum(hex.EncodeToString(h[:8]))
}
