package coordinator

import "errors"

// Errors that callers act on; they are wrapped with the model and the reason.
var (
	// ErrInvalid means that a request is malformed: a name, a label, a digest.
	ErrInvalid = errors.New("coordinator: invalid request")
	// ErrNoModel means that no record of the model exists.
	ErrNoModel = errors.New("coordinator: no such model")
	// ErrNoVersion means that no variant of the model matches the selector.
	ErrNoVersion = errors.New("coordinator: no such version")
	// ErrAmbiguous means that the selector matches several weights.
	ErrAmbiguous = errors.New("coordinator: version is ambiguous")
	// ErrTooMany means that a record has no room for another variant, all of them being live.
	ErrTooMany = errors.New("coordinator: too many versions")
	// ErrRecord means that the control record is damaged, of another format, or over a limit. Nothing of it is used.
	ErrRecord = errors.New("coordinator: bad control record")
	// ErrConflict means that the record was changed by somebody else between read and write.
	ErrConflict = errors.New("coordinator: record changed meanwhile")
	// ErrState means that the file of desired state cannot be read or written. Nothing is changed without it.
	ErrState = errors.New("coordinator: state file")
	// ErrDeposed means that another coordinator leads: what only the leader may do was not done.
	ErrDeposed = errors.New("coordinator: not the leader any more")
	// ErrExhausted means that a generation or epoch has reached MaxNumber.
	ErrExhausted = errors.New("coordinator: numbers exhausted")
)
