// Command benchmarks does the same work through kvtier and through what a Go program would use instead, in rounds that take turns in one
// process: values of K/V read from and written to one Redis, and hits in memory. It is a module of its own so that none of the
// others becomes a dependency of kvtier.
//
//	go run . --redis redis://127.0.0.1:6379     # from this directory
//	./run.sh                                    # with a server of its own, pinned, as docs/PERFORMANCE.md measures
package main
