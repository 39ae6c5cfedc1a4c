package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kvtier/kvtier/block"
)

func TestLogsSpeakInWords(t *testing.T) {
	var b strings.Builder
	newLogger(&b, slog.LevelInfo).Info("x", "quant", block.QuantNone, "hash", block.Hash{1}, "variant", block.Variant{1}, "retry", 250*time.Millisecond,
		"at", time.Unix(0, 0).UTC(), "err", errors.New("no"), "n", 7, "ok", true)
	var got map[string]any
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339Nano, got["time"].(string)); err != nil {
		t.Error(err)
	}
	delete(got, "time")
	want := map[string]any{"level": "INFO", "msg": "x", "quant": "none", "hash": block.Hash{1}.String(), "variant": block.Variant{1}.String(), "retry": "250ms",
		"at": "1970-01-01T00:00:00Z", "err": "no", "n": 7.0, "ok": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
