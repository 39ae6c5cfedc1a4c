package warmup

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
)

// Encoder turns items into tokens, several at once where that is cheaper. It is safe for concurrent use.
type Encoder interface {
	Encode(ctx context.Context, items []Item) ([][]int32, error)
}

// PlanOptions configure NewPlan.
type PlanOptions struct {
	Source      Source
	Encoder     Encoder // required
	BlockTokens int     // required
	// ContextTokens is the longest prompt that can be computed; 0 for no limit.
	ContextTokens int
	// Strict makes the first broken line an error.
	Strict bool
	// Broken is called with every line that cannot be used, one at a time; nil for nobody.
	Broken func(error)
	// Progress is called now and then with the number of prompts read; nil for nobody.
	Progress func(prompts int64)

	SortBytes int    // memory of the sorter; default 64 MiB
	Dir       string // of its files; "" for the system's
}

// Stats are what a plan found.
type Stats struct {
	Prompts  int64 `json:"prompts"`
	Broken   int64 `json:"broken"`
	TooShort int64 `json:"too_short"` // without a single full block: nothing of them can be shared
	Tokens   int64 `json:"tokens"`    // of all prompts
	// Blocks counts the full blocks of all prompts, UniqueBlocks those that have to be stored: the difference is shared.
	Blocks       int64 `json:"blocks"`
	UniqueBlocks int64 `json:"unique_blocks"`
	Groups       int64 `json:"groups"` // sets of prompts with the same first block
}

// SharedShare is the part of all blocks that others have too.
func (s Stats) SharedShare() float64 {
	if s.Blocks == 0 {
		return 0
	}
	return 1 - float64(s.UniqueBlocks)/float64(s.Blocks)
}

// Plan is the order of a warm-up. Its prompts stand in a file, sorted by chain within each group.
type Plan struct {
	Stats       Stats
	BlockTokens int
	// Digest names the plan: equal manifests give equal ones.
	Digest uint64
	// Seconds is how long it took to make.
	Seconds float64

	opts   PlanOptions
	groups []group
	file   *scratch
}

// group is a run of prompts that begin with the same block.
type group struct {
	at       int64 // first record in the file
	n        int32
	longest  int32 // blocks of the longest prefix that two of them share
	hits     int64
	priority int16
}

// maxHold is how many lines, and bytes of them, are worked on together.
const (
	maxHold      = 256
	maxHoldBytes = 1 << 20
)

// NewPlan reads the manifest. Close releases the plan's file.
func NewPlan(ctx context.Context, o PlanOptions) (*Plan, error) {
	if o.Encoder == nil || o.BlockTokens < 1 {
		return nil, errors.New("warmup: PlanOptions.Encoder and BlockTokens are required")
	}
	start := time.Now()
	o.SortBytes = cmp.Or(o.SortBytes, 64<<20)
	p := &Plan{BlockTokens: o.BlockTokens, opts: o}
	s := &sorter{limit: o.SortBytes, dir: o.Dir}
	defer s.close()
	if err := p.read(ctx, s); err != nil {
		return nil, err
	}
	p.file = &scratch{dir: o.Dir, keep: o.SortBytes / 4}
	if err := p.arrange(s); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.Seconds = time.Since(start).Seconds()
	return p, nil
}

// Close releases the plan's file.
func (p *Plan) Close() error { return p.file.Close() }

// pending is a line on its way through the pool.
type pending struct {
	place
	raw []byte
}

// read runs the manifest through a pool of parsers into s.
func (p *Plan) read(ctx context.Context, s *sorter) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	batches := make(chan []pending, 2)
	var mu sync.Mutex // guards s, p.Stats and the callbacks
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for batch := range batches {
				if ctx.Err() != nil {
					continue
				}
				if err := p.digest(ctx, batch, s, &mu); err != nil {
					stop(err)
				}
			}
		})
	}
	err := p.feed(ctx, batches, &mu)
	close(batches)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// feed cuts the manifest into batches. Definitions are read on the spot, since what follows needs them.
func (p *Plan) feed(ctx context.Context, batches chan<- []pending, mu *sync.Mutex) error {
	var hold []pending
	var arena []byte
	flush := func() error {
		if len(hold) == 0 {
			return nil
		}
		select {
		case batches <- hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		hold, arena = nil, nil
		return nil
	}
	err := p.opts.Source.each(func(at place, raw []byte) error {
		if bytes.Contains(raw, []byte(`"define"`)) {
			if _, ok, err := p.opts.Source.parse(at, raw); !ok {
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					return p.broken(err)
				}
				return nil
			}
		}
		if len(hold) == maxHold || len(arena)+len(raw) > maxHoldBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		if arena == nil {
			arena = make([]byte, 0, maxHoldBytes)
		}
		line := pending{place: at}
		if raw != nil {
			from := len(arena)
			arena = append(arena, raw...)
			line.raw = arena[from:len(arena):len(arena)]
		}
		hold = append(hold, line)
		return nil
	})
	return errors.Join(err, flush())
}

// broken counts and reports a line that cannot be used. The lock is held.
func (p *Plan) broken(err error) error {
	p.Stats.Broken++
	if p.opts.Strict {
		return err
	}
	if p.opts.Broken != nil {
		p.opts.Broken(err)
	}
	return nil
}

// digest turns lines into records.
func (p *Plan) digest(ctx context.Context, batch []pending, s *sorter, mu *sync.Mutex) error {
	items, at := make([]Item, 0, len(batch)), make([]place, 0, len(batch))
	var bad []error
	for _, l := range batch {
		it, ok, err := p.opts.Source.parse(l.place, l.raw)
		if err != nil {
			bad = append(bad, err)
		} else if ok {
			items, at = append(items, it), append(at, l.place)
		}
	}
	tokens, err := p.opts.Encoder.Encode(ctx, items)
	if err != nil {
		return err
	}
	records := make([]record, 0, len(items))
	var chains []byte
	for i, it := range items {
		if limit := p.opts.ContextTokens; limit > 0 && len(tokens[i]) > limit {
			file := p.opts.Source.Files[at[i].file].Path
			bad = append(bad, &LineError{file, at[i].number, broken("%d tokens, the model's context has %d", len(tokens[i]), limit)})
			continue
		}
		from := len(chains)
		chains = appendChain(chains, it.Salt, tokens[i], p.BlockTokens)
		r := record{place: at[i], priority: it.Priority, pin: it.Pin, hits: it.ExpectHits, tokens: len(tokens[i]), blocks: len(tokens[i]) / p.BlockTokens}
		if r.chain = chains[from:len(chains):len(chains)]; r.blocks > 0 {
			r.check = binary.BigEndian.Uint64(r.chain[len(r.chain)-8:])
		}
		records = append(records, r)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, err := range bad {
		if err := p.broken(err); err != nil {
			return err
		}
	}
	for i := range records {
		r := &records[i]
		p.Stats.Prompts++
		p.Stats.Tokens += int64(r.tokens)
		if r.blocks == 0 {
			p.Stats.TooShort++
			continue
		}
		if err := s.add(r); err != nil {
			return err
		}
	}
	if p.opts.Progress != nil {
		p.opts.Progress(p.Stats.Prompts)
	}
	return nil
}

// appendChain appends 8 bytes per full block of tokens, each a hash of the block, of all before it, and of the tenant. They order a plan and
// say what is shared; what K/V is stored under is block.Chain's to compute, with the cluster's secret, where the weights are.
func appendChain(dst []byte, salt string, tokens []int32, blockTokens int) []byte {
	h := xxh3.HashString(salt)
	buf := make([]byte, 4*blockTokens)
	for ; len(tokens) >= blockTokens; tokens = tokens[blockTokens:] {
		for i, t := range tokens[:blockTokens] {
			binary.LittleEndian.PutUint32(buf[4*i:], uint32(t))
		}
		h = xxh3.HashSeed(buf, h)
		dst = binary.BigEndian.AppendUint64(dst, h)
	}
	return dst
}

// arrange writes the sorted records, finds the groups and puts them in order.
func (p *Plan) arrange(s *sorter) error {
	out := bufio.NewWriterSize(p.file, 256<<10)
	var last []byte
	var buf []byte
	digest := xxh3.New()
	n := int64(0)
	err := s.merge(func(r *record) error {
		r.shared = commonBlocks(last, r.chain)
		if r.shared == 0 {
			p.groups = append(p.groups, group{at: n, priority: int16(r.priority)})
		}
		g := &p.groups[len(p.groups)-1]
		g.n++
		g.longest = max(g.longest, int32(r.shared))
		g.hits += int64(max(1, r.hits))
		g.priority = max(g.priority, int16(r.priority))
		p.Stats.Blocks += int64(r.blocks)
		p.Stats.UniqueBlocks += int64(r.blocks - r.shared)
		last = append(last[:0], r.chain...)
		buf = r.append(buf[:0])
		_, _ = digest.Write(buf) // never fails
		n++
		_, err := out.Write(buf)
		return err
	})
	if err = errors.Join(err, out.Flush()); err != nil {
		return fmt.Errorf("warmup: plan: %w", err)
	}
	p.Digest = digest.Sum64() ^ uint64(p.BlockTokens)
	p.Stats.Groups = int64(len(p.groups))
	slices.SortStableFunc(p.groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(b.longest, a.longest), cmp.Compare(b.hits, a.hits), cmp.Compare(a.at, b.at))
	})
	return nil
}

// commonBlocks counts the blocks that two chains share. A chain's hash names everything before it too, but chains differ from some block
// on and never meet again, so that comparing from the front is exact.
func commonBlocks(a, b []byte) int {
	n := min(len(a), len(b)) / 8
	for i := range n {
		if !bytes.Equal(a[8*i:8*i+8], b[8*i:8*i+8]) {
			return i
		}
	}
	return n
}

// records reads a group's records, in order.
func (p *Plan) records(g group) func(yield func(record, error) bool) {
	return func(yield func(record, error) bool) {
		in := bufio.NewReaderSize(io.NewSectionReader(p.file, g.at*recordBytes, int64(g.n)*recordBytes), min(64<<10, int(g.n)*recordBytes))
		var buf [recordBytes]byte
		for range g.n {
			if _, err := io.ReadFull(in, buf[:]); err != nil {
				yield(record{}, fmt.Errorf("warmup: plan: %w", err))
				return
			}
			var r record
			r.parse(buf[:])
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Sample returns the tokens of full blocks of prompts that the plan has, about n of them, or as many as the longest of the first groups' prompts
// has: what is computed to learn what computing costs.
func (p *Plan) Sample(ctx context.Context, n int) ([]int32, error) {
	var best record
	seen := 0
	for _, g := range p.groups[:min(len(p.groups), 16)] {
		for r, err := range p.records(g) {
			if err != nil {
				return nil, err
			}
			if seen++; r.blocks > best.blocks {
				best = r
			}
			if best.blocks*p.BlockTokens >= n || seen > 1000 {
				break
			}
		}
	}
	t := &Task{To: best.blocks, rec: best}
	req, err := p.request(ctx, t)
	if err != nil {
		return nil, err
	}
	return req.Tokens[:min(len(req.Tokens), max(p.BlockTokens, n/p.BlockTokens*p.BlockTokens))], nil
}

// Prompts returns the full blocks of every prompt, in the order of the plan.
func (p *Plan) Prompts(ctx context.Context) iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		for _, g := range p.groups {
			for r, err := range p.records(g) {
				var req Request
				if err == nil {
					req, err = p.request(ctx, &Task{To: r.blocks, Final: true, rec: r})
				}
				if !yield(req, err) || err != nil {
					return
				}
			}
		}
	}
}
