package invariants_test

import (
	"testing"

	"github.com/kvtier/kvtier/internal/invariants"
)

func TestPoison(t *testing.T) {
	b := make([]byte, 1000)
	invariants.Poison(b)
	if !invariants.Poisoned(b) {
		t.Error("poisoned bytes are not recognised")
	}
	b[999] = 1
	if invariants.Poisoned(b) == invariants.Enabled {
		t.Error("a write to poisoned bytes is not seen")
	}
}
