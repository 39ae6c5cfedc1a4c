package httpapi

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// RequestIDHeader carries a request's id in both directions.
const RequestIDHeader = "X-Request-Id"

type requestIDKey struct{}

// RequestIDOf returns the id of the request that ctx belongs to, "" for none.
func RequestIDOf(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// RequestID gives every request an id: the one that the client has sent, if it is short and plain, or else a new one. The answer carries it
// in the same header, the context for RequestIDOf, and the log with every answer: at level debug, an error that the client has made at info,
// and one of the server's at warn.
func RequestID(log *slog.Logger, next http.Handler) http.Handler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(RequestIDHeader)
		if !plain(id) {
			id = "req_" + strings.ToLower(rand.Text())
		}
		w.Header().Set(RequestIDHeader, id)
		ctx := context.WithValue(r.Context(), requestIDKey{}, id)
		answer, begun := &statusWriter{ResponseWriter: w, status: http.StatusOK}, time.Now()
		next.ServeHTTP(answer, r.WithContext(ctx))
		attrs := []slog.Attr{
			slog.String("request_id", id), slog.String("method", short(r.Method)), slog.String("path", short(r.URL.Path)),
			slog.Int("status", answer.status), slog.Duration("took", time.Since(begun)),
		}
		level := slog.LevelDebug
		if e := answer.err; e != nil {
			level = slog.LevelInfo
			attrs = append(attrs, slog.String("code", e.Code), slog.String("err", short(e.Message)))
		}
		if answer.status >= http.StatusInternalServerError {
			level = slog.LevelWarn
		}
		log.LogAttrs(ctx, level, "request", attrs...)
	})
}

// plain says whether an id of a client's can be repeated in a header and a log: 1 to 128 letters, digits and signs of ids.
func plain(id string) bool {
	return id != "" && len(id) <= 128 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:/+=@-") == ""
}

func short(s string) string { return s[:min(len(s), 300)] }

// statusWriter remembers what was answered.
type statusWriter struct {
	http.ResponseWriter
	status int
	begun  bool
	err    *Error // by WriteError
}

func (w *statusWriter) WriteHeader(status int) {
	if !w.begun && status >= http.StatusOK { // below are announcements
		w.status, w.begun = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
