// Package models embeds two small checkpoints, so that a demo and the tests run a real model without a download.
package models

import "embed"

// FS holds the GGUF files [Default] and [Previous]. Its files implement io.ReaderAt.
//
//go:embed *.gguf
var FS embed.FS

const (
	// Default is the checkpoint to serve: trained at the length it is used at.
	Default = "shakespeare-3m-v2.gguf"
	// Previous has the shape of Default and other weights: replacing it by Default is a real change of weights.
	Previous = "shakespeare-3m-v1.gguf"
)
