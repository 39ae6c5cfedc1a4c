package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/store/redisstore"
)

// probeBlocks is the prefix that is probed: 32,768 tokens.
const probeBlocks = 2048

// probe measures store.Lead over keys as long as real ones, all present: the longest answer.
func probe(ctx context.Context, server *Server, o RemoteOptions) (_ ProbeResult, err error) {
	st, err := redisstore.Open(redisstore.Options{URL: server.url, Role: "bench"})
	if err != nil {
		return ProbeResult{}, err
	}
	defer st.Close()
	raw, err := server.dial(ctx)
	if err != nil {
		return ProbeResult{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	defer raw.Close()
	keys := make([]string, probeBlocks)
	items := make([]store.Item, probeBlocks)
	for i := range keys {
		h := block.Hash{byte(i), byte(i >> 8)}
		keys[i] = KeyPrefix + o.Seed + ":" + block.Key(block.Variant{1}, 1, h, 0)
		items[i] = store.Item{Key: keys[i], Value: []byte("1")}
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, e := st.Delete(ctx, keys)
		err = errors.Join(err, e)
	}()
	if err := st.Put(ctx, items, keyTTL); err != nil {
		return ProbeResult{}, err
	}
	series, err := Rounds(ctx, PlanFor(min(o.Duration, 4*time.Second), 2), []Method{
		{"raw EXISTS", func(context.Context) (Work, error) {
			if n, err := raw.Exists(keys); err != nil || n != len(keys) {
				return Work{}, errors.Join(fmt.Errorf("%d of %d keys exist", n, len(keys)), err)
			}
			return Work{Bytes: probeBlocks, Ops: 1}, nil
		}},
		{"probe", func(ctx context.Context) (Work, error) {
			if n, err := st.Lead(ctx, keys); err != nil || n != len(keys) {
				return Work{}, errors.Join(fmt.Errorf("%d of %d keys lead", n, len(keys)), err)
			}
			return Work{Bytes: probeBlocks, Ops: 1}, nil
		}},
	}, nil)
	if err != nil {
		return ProbeResult{}, err
	}
	return ProbeResult{Blocks: probeBlocks, Ms: series[1].Of(Sample.NsPerOp).Median / 1e6,
		RawMs: series[0].Of(Sample.NsPerOp).Median / 1e6, Ratio: series[0].Ratio(series[1]).Median}, nil
}
