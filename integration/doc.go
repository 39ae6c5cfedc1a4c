// Package integration tests the real binary: coordinator and workers as processes of their own against a Redis in a container. Each test names
// the promise it guards. Without Docker they are skipped with one line; KVTIER_REQUIRE_CONTAINERS=1 makes that a failure.
package integration
