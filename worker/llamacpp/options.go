package llamacpp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/kvtier/kvtier/block"
)

// Options say where a llama-server is and how it is used.
type Options struct {
	// URL of the server, such as http://127.0.0.1:8080; required.
	URL string
	// APIKey is the server's --api-key, if it has one.
	APIKey string
	// Checkpoint is the model file that the server has loaded; required. It is read once, completely, for its digest.
	Checkpoint string
	// SlotsDir is the server's --slot-save-path as this process sees it. Server and worker must be able to read and to replace each
	// other's files there. A tmpfs makes them cheapest; it needs room for two contexts per slot. Without it nothing is cached.
	SlotsDir string
	// BlockTokens is the number of tokens per block of K/V; default 16.
	BlockTokens int
	// SaveShare is the share of a sequence, as 1 ÷ SaveShare, that must be new before its K/V is read back from the server, which writes
	// the whole sequence for that. Default 8: bytes written are then at most 9 times the bytes of the longest sequence, however many
	// turns it took. 1<<30 saves whenever there is a new block.
	SaveShare int
	// SpliceTokens is how many tokens K/V must be found for behind what a slot still holds, before they are put there; fewer are
	// cheaper to compute. Default 64.
	SpliceTokens int
	// Wait is how long Open waits for a server that is starting; default 2 minutes.
	Wait time.Duration
	// CallTimeout bounds each call but completions; default 30 s. Calls wait for the batch that the server is computing.
	CallTimeout time.Duration
	// StallTimeout ends a completion in which nothing has arrived for that long; default 2 minutes. It bounds prefill too.
	StallTimeout time.Duration
	// Logger receives changes of state; nil discards.
	Logger *slog.Logger

	wrap func(http.RoundTripper) http.RoundTripper // for tests
}

func (o Options) withDefaults() Options {
	for field, value := range map[*time.Duration]time.Duration{&o.Wait: 2 * time.Minute, &o.CallTimeout: 30 * time.Second, &o.StallTimeout: 2 * time.Minute} {
		if *field == 0 {
			*field = value
		}
	}
	for field, value := range map[*int]int{&o.BlockTokens: 16, &o.SaveShare: 8, &o.SpliceTokens: 64} {
		if *field == 0 {
			*field = value
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	var errs []error
	if o.Checkpoint == "" {
		errs = append(errs, errors.New("llamacpp: options: Checkpoint is missing: name the GGUF file that llama-server has loaded"))
	}
	if o.BlockTokens < 1 || o.BlockTokens > block.MaxBlockTokens {
		errs = append(errs, fmt.Errorf("llamacpp: options: BlockTokens is %d, want 1 to %d", o.BlockTokens, block.MaxBlockTokens))
	}
	if o.SaveShare < 1 || o.SpliceTokens < 1 || o.Wait < 0 || o.CallTimeout < 0 || o.StallTimeout < 0 {
		errs = append(errs, errors.New("llamacpp: options: SaveShare, SpliceTokens and time-outs must be positive"))
	}
	if o.SlotsDir != "" {
		if st, err := os.Stat(o.SlotsDir); err != nil {
			errs = append(errs, fmt.Errorf("llamacpp: options: SlotsDir: %w", err))
		} else if !st.IsDir() {
			errs = append(errs, fmt.Errorf("llamacpp: options: SlotsDir %s is not a directory", o.SlotsDir))
		}
	}
	return errors.Join(errs...)
}
