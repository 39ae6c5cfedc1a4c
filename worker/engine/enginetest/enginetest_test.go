package enginetest_test

import (
	"testing"

	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/engine/enginetest"
)

func TestTiny(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) engine.Engine { return enginetest.Tiny(t, 1) })
}

func TestSampling(t *testing.T) {
	enginetest.RunGenerator(t, func(t *testing.T) engine.Engine { return enginetest.Sampling(enginetest.Tiny(t, 1)) })
}

func TestTinySeeds(t *testing.T) {
	a, b := enginetest.Tiny(t, 1), enginetest.Tiny(t, 2)
	if a.Identity().Weights == b.Identity().Weights {
		t.Error("other seeds give the same weights")
	}
	if a.Identity().Layout != b.Identity().Layout {
		t.Error("other seeds give other layouts")
	}
}
