package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// BatchError is the error of a batch whose items have outcomes of their own. errors.Is and errors.As find the errors of all items.
type BatchError struct {
	// Errs has an error for each item of the batch, nil for those that went well.
	Errs []error
}

// Error says how many items failed, and why the first did.
func (e *BatchError) Error() string {
	failed := e.Unwrap()
	if len(failed) == 0 {
		return "store: no item failed"
	}
	return fmt.Sprintf("%d of %d failed, the first: %v", len(failed), len(e.Errs), failed[0])
}

// Unwrap returns the errors of the items that failed.
func (e *BatchError) Unwrap() []error {
	var failed []error
	for _, err := range e.Errs {
		if err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}

// Batch returns nil if all of errs are, one for each item of a batch, and otherwise a *BatchError that keeps errs; the error itself of a batch
// of one.
func Batch(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	for _, err := range errs {
		if err != nil {
			return &BatchError{errs}
		}
	}
	return nil
}

// ErrorOf returns what became of item i of a batch, given the error of the whole: its own error, or err if the batch failed as one.
func ErrorOf(err error, i int) error {
	if b, ok := errors.AsType[*BatchError](err); ok {
		return b.Errs[i]
	}
	return err
}

// answers are errors of a store that is well.
var answers = []error{ErrNotFound, ErrNotValue, ErrTooLarge, ErrInvalid, ErrFull, ErrReadOnly, ErrUnavailable, ErrLate, ErrClosed}

// IsFault reports whether err, or the error of any item of a batch, says that the store is sick, as opposed to answering no: a breaker
// counts faults only. A deadline that passed while the store was silent is a fault; a caller that went away is not.
func IsFault(err error) bool {
	if b, ok := errors.AsType[*BatchError](err); ok {
		return slices.ContainsFunc(b.Errs, IsFault)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	for _, no := range answers {
		if errors.Is(err, no) {
			return false
		}
	}
	return true
}

// outcome is what a call says about the store. The order matters: one fault outweighs successes.
type outcome uint8

const (
	outcomeNone  outcome = iota // the store was not asked, or the caller went away before it had answered
	outcomeWell                 // an answer, be it no
	outcomeFault                // see IsFault
)

func outcomeOf(err error) outcome {
	if err == nil {
		return outcomeWell
	}
	if b, ok := errors.AsType[*BatchError](err); ok {
		worst := outcomeNone
		for _, err := range b.Errs {
			worst = max(worst, outcomeOf(err))
		}
		return worst
	}
	switch {
	case errors.Is(err, ErrNode):
		return outcomeNone // what is in front of the node counts it
	case IsFault(err):
		return outcomeFault
	case errors.Is(err, context.Canceled), errors.Is(err, ErrClosed), errors.Is(err, ErrUnavailable), errors.Is(err, ErrInvalid), errors.Is(err, ErrLate):
		return outcomeNone
	default:
		return outcomeWell
	}
}
