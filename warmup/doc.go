// Package warmup fills the remote tier before traffic arrives.
//
// A manifest is read as a stream (manifest.go, template.go). The planner (plan.go) sorts its prompts by their chains of blocks, in runs on disk, so that
// prompts which share a prefix stand side by side; from neighbours it reads what is shared. A sorted plan is the walk through the trie of all
// chains in depth-first order, and needs no trie in memory. The dispatcher (run.go) cuts it into tasks, each of which is a stretch of
// blocks that exists once (task.go), and hands them to workers, a shared stretch before what builds on it. What is done is noted
// (journal.go), so that a job can be resumed; workers look before they compute, so that doing a task twice computes nothing.
//
// Memory is bounded: by the sorter's buffer, one line per worker, and a few bytes per group of prompts.
package warmup
