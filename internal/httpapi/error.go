package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
)

// Types of errors, as in OpenAI's API.
const (
	TypeInvalidRequest = "invalid_request_error"
	TypeAuthentication = "authentication_error"
	TypeServer         = "server_error"
)

// Error is an answer that says what went wrong: on the wire {"error":{"message","type","code"}} with an HTTP status.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"message"`
	Type    string `json:"type"`
	Code    string `json:"code"`            // for programs; stable
	Param   string `json:"param,omitempty"` // field at fault, if one is
}

func (e *Error) Error() string { return e.Message }

// BadRequest makes a 400 about a field, or about the request as a whole if param is "".
func BadRequest(code, param, message string) *Error {
	return &Error{Status: http.StatusBadRequest, Message: message, Type: TypeInvalidRequest, Code: code, Param: param}
}

type errorBody struct {
	Error *Error `json:"error"`
}

// WriteError answers with err: as it is if there is an *Error in its chain, otherwise as a 500.
func WriteError(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Status: http.StatusInternalServerError, Message: err.Error(), Type: TypeServer, Code: "internal_error"}
	}
	if answer, ok := w.(*statusWriter); ok {
		answer.err = e
	}
	WriteJSON(w, e.Status, errorBody{e})
}

// ParseError reads the body of an error answer; ok is false if it is not in the shape that WriteError writes.
func ParseError(status int, body []byte) (e *Error, ok bool) {
	var b errorBody
	if json.Unmarshal(body, &b) != nil || b.Error == nil || b.Error.Message == "" {
		return nil, false
	}
	b.Error.Status = status
	return b.Error, true
}
