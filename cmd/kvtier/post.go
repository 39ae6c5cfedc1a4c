package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// maxAnswer bounds what is read of a worker's answer.
const maxAnswer = 8 << 20

// checkWorkerURL refuses what cannot be the base URL of a worker.
func checkWorkerURL(base string) error {
	if u, err := url.Parse(base); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return usagef("--worker %q: want a URL such as http://127.0.0.1:8080", base)
	}
	return nil
}

// postWorker sends request as JSON to a worker and returns the body of its answer. A refusal is an *httpapi.Error with the status, wrapped with
// the worker's URL.
func postWorker(ctx context.Context, base, path, token string, request any) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(base, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		e, ok := httpapi.ParseError(resp.StatusCode, answer)
		if !ok {
			e = &httpapi.Error{Status: resp.StatusCode, Message: "no reason given"}
		}
		return nil, fmt.Errorf("%s answered %s: %w", base, resp.Status, e)
	}
	return answer, nil
}
