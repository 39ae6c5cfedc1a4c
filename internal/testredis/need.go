package testredis

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
)

// Required says whether a missing container engine is a failure: KVTIER_REQUIRE_CONTAINERS=1.
func Required() bool { return os.Getenv("KVTIER_REQUIRE_CONTAINERS") == "1" }

// Need skips or fails the test when there is no container engine.
func Need(tb testing.TB) {
	tb.Helper()
	settle()
	if err := engineError(); err != nil {
		err := strings.ReplaceAll(err.Error(), "\n", "; ") // one line in the log
		if Required() {
			tb.Fatalf("testredis: KVTIER_REQUIRE_CONTAINERS=1 but there is no container engine: %s", err)
		}
		tb.Skipf("no container engine, start Docker to run this test: %s", err)
	}
}

// engineError returns why no container can be started, or nil. The library panics where it finds no engine at all.
func engineError() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	provider, err := testcontainers.ProviderDefault.GetProvider()
	if err != nil {
		return err
	}
	defer provider.Close()
	return provider.Health(ctx)
}
