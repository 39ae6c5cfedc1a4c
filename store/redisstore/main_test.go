package redisstore_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvtier/kvtier/internal/testredis"
)

// pool is the container that the tests of this binary share.
var pool testredis.Pool

func TestMain(m *testing.M) {
	code := m.Run()
	pool.Close()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println("goleak:", err.Error())
			code = 1
		}
	}
	os.Exit(code)
}
