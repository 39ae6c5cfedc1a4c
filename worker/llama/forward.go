package llama

import (
	"context"
	"math"

	"github.com/kvtier/kvtier/worker/llama/internal/kernel"
)

// tokenGroup is the number of tokens that one item of the per-token phases takes.
const tokenGroup = 8

// pass is the scratch of one call: activations of a batch, and the team that computes it. Rows are tokens.
type pass struct {
	model *Model
	team  team

	x      []float32 // [tokens][dim] the residual stream
	norm   []float32 // [tokens][dim]
	qkv    []float32 // [tokens][qDim + 2 kvDim]
	attn   []float32 // [tokens][qDim]
	delta  []float32 // [tokens][dim] what a sublayer adds to x
	gate   []float32 // [tokens][ffn]
	up     []float32 // [tokens][ffn]
	tables []float32 // [tokens][2 × rope pairs]
	worker []workerScratch

	// The batch that is being computed.
	tokens   []int32
	pieces   []piece
	outputs  []output
	layer    int
	phases   phases
	capacity int // tokens that the buffers hold
}

// piece is what one item of a per-token phase takes: consecutive tokens of one sequence, at most tokenGroup of them.
type piece struct {
	kv         *kvStore
	pos        int // position of the first
	first, end int // rows in the batch
}

// output is a row whose logits are wanted.
type output struct {
	row    int
	logits []float32
}

type workerScratch struct {
	scores []float32 // [ScoreLen(context so far)]
	ffn    []float32 // [tokenGroup × RowTile] at least
}

// phases are the steps of a pass as values, bound once: binding them at every call would allocate.
type phases struct{ embed, attnNorm, qkv, store, attend, attnOut, ffnNorm, gateUp, down, finish, output func(worker, item int) }

func (m *Model) beginPass(tokens int) *pass {
	p, _ := m.passes.Get().(*pass)
	if p == nil {
		p = &pass{model: m}
		p.phases = phases{p.embed, p.attnNorm, p.qkvTile, p.store, p.attend, p.attnOutTile, p.ffnNorm, p.gateUpTile, p.downTile, p.finish, p.outputTile}
	}
	h := &m.hparams
	if n := min(tokens, batchTokens); n > p.capacity {
		p.capacity = n
		for buf, width := range map[*[]float32]int{
			&p.x: h.dim, &p.norm: h.dim, &p.qkv: h.qDim() + 2*h.kvDim(), &p.attn: h.qDim(), &p.delta: h.dim,
			&p.gate: h.ffn, &p.up: h.ffn, &p.tables: 2 * m.rope.Pairs(),
		} {
			*buf = make([]float32, n*width)
		}
	}
	most := m.threads
	if perToken := 2 * h.layers * (h.dim*(2*h.qDim()+2*h.kvDim()) + 3*h.dim*h.ffn); tokens*perToken < m.parallelFLOPs {
		most = 1
	}
	threads := m.crew.take(most)
	for len(p.worker) < threads {
		p.worker = append(p.worker, workerScratch{})
	}
	p.team.start(threads)
	return p
}

func (m *Model) endPass(p *pass) {
	p.team.stop()
	m.crew.give(p.team.size)
	p.clear()
	m.passes.Put(p)
}

// clear empties the batch, and forgets the sequences that were in it.
func (p *pass) clear() {
	clear(p.pieces)
	clear(p.outputs)
	p.tokens, p.pieces, p.outputs = p.tokens[:0], p.pieces[:0], p.outputs[:0]
}

// add puts tokens at pos onward into the batch: their K and V go to kv, the logits of the last to logits unless that is nil.
// Several sequences may be in a batch, each once.
func (p *pass) add(kv *kvStore, pos int, tokens []int32, logits []float32) {
	kv.reserve(pos, pos+len(tokens))
	for first := 0; first < len(tokens); first += tokenGroup {
		row, n := len(p.tokens)+first, min(tokenGroup, len(tokens)-first)
		p.pieces = append(p.pieces, piece{kv: kv, pos: pos + first, first: row, end: row + n})
	}
	p.tokens = append(p.tokens, tokens...)
	if logits != nil {
		p.outputs = append(p.outputs, output{row: len(p.tokens) - 1, logits: logits})
	}
}

// forward computes the batch. What is in it beside a token changes no bit of that token's K, V and logits. At the end of ctx it gives up within
// a layer: what it has written is of positions that do not count yet.
func (p *pass) forward(ctx context.Context) error {
	h := &p.model.hparams
	longest := 0
	for _, x := range p.pieces {
		longest = max(longest, x.pos+x.end-x.first)
	}
	for i := range p.team.size {
		if n := kernel.ScoreLen(longest); len(p.worker[i].scores) < n {
			p.worker[i].scores = make([]float32, n)
		}
		if p.worker[i].ffn == nil {
			p.worker[i].ffn = make([]float32, kernel.RowTile)
		}
	}
	pieces := len(p.pieces)
	p.team.do(pieces, p.phases.embed)
	for p.layer = range p.model.weights.layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.team.do(pieces, p.phases.attnNorm)
		p.matmul(h.qDim()+2*h.kvDim(), p.phases.qkv)
		p.team.do(pieces, p.phases.store)
		p.each(pieces*h.heads, p.phases.attend)
		p.matmul(h.dim, p.phases.attnOut)
		if err := ctx.Err(); err != nil {
			return err
		}
		p.team.do(pieces, p.phases.ffnNorm)
		p.matmul(h.ffn, p.phases.gateUp)
		if err := ctx.Err(); err != nil {
			return err
		}
		p.matmul(h.dim, p.phases.down)
		p.team.do(pieces, p.phases.finish)
	}
	p.project()
	return nil
}

// project makes the logits of the outputs.
func (p *pass) project() {
	h := &p.model.hparams
	if len(p.outputs) == 0 {
		return
	}
	for i, o := range p.outputs {
		kernel.RMSNorm(row(p.norm, i, h.dim), row(p.x, o.row, h.dim), p.model.weights.norm, h.eps)
	}
	p.matmul(h.vocab, p.phases.output)
}

// matmul runs a product with n rows of weights, tile by tile.
func (p *pass) matmul(n int, tile func(worker, item int)) { p.each(kernel.Tiles(n), tile) }

// each runs a phase of any number of items.
func (p *pass) each(items int, run func(worker, item int)) {
	if items <= maxItems {
		p.team.do(items, run)
		return
	}
	for first := 0; first < items; first += maxItems { // a vocabulary of more than a million, or many heads of many sequences
		p.team.do(min(maxItems, items-first), func(worker, item int) { run(worker, first+item) })
	}
}

func row(x []float32, i, width int) []float32 { return x[i*width : (i+1)*width] }

func (p *pass) embed(_, item int) {
	dim, pairs, x := p.model.hparams.dim, p.model.rope.Pairs(), p.pieces[item]
	for t := x.first; t < x.end; t++ {
		copy(row(p.x, t, dim), row(p.model.weights.embed, int(p.tokens[t]), dim))
		p.model.rope.Table(row(p.tables, t, 2*pairs), x.pos+t-x.first)
	}
}

func (p *pass) attnNorm(_, item int) {
	dim := p.model.hparams.dim
	for t := p.pieces[item].first; t < p.pieces[item].end; t++ {
		kernel.RMSNorm(row(p.norm, t, dim), row(p.x, t, dim), p.model.weights.layers[p.layer].attnNorm, p.model.hparams.eps)
	}
}

func (p *pass) qkvTile(_, item int) {
	h := &p.model.hparams
	kernel.MatTile(p.qkv, p.norm, p.model.weights.layers[p.layer].qkv, len(p.tokens), h.qDim()+2*h.kvDim(), h.dim, item)
}

// store turns queries and keys, scales queries, and puts keys and values where attention finds them.
func (p *pass) store(_, item int) {
	h, pairs := &p.model.hparams, p.model.rope.Pairs()
	width := h.qDim() + 2*h.kvDim()
	scale := float32(1 / math.Sqrt(float64(h.headDim)))
	x := p.pieces[item]
	for t := x.first; t < x.end; t++ {
		r, table := row(p.qkv, t, width), row(p.tables, t, 2*pairs)
		for head := range h.heads + h.kvHeads {
			kernel.Rotate(row(r, head, h.headDim), table)
		}
		kernel.ScaleBy(r[:h.qDim()], scale)
	}
	rows := p.qkv[x.first*width : x.end*width]
	x.kv.put(x.pos, x.end-x.first, p.layer, 0, rows, width, h.qDim())
	x.kv.put(x.pos, x.end-x.first, p.layer, 1, rows, width, h.qDim()+h.kvDim())
}

// attend computes one head for one piece. The last tokens of a sequence see most and come first, so that threads finish together.
func (p *pass) attend(worker, item int) {
	h := &p.model.hparams
	head, x := item%h.heads, p.pieces[len(p.pieces)-1-item/h.heads]
	kvHead := head / h.group()
	keys := func(i int) []float32 { return x.kv.plane(i, p.layer, 0, kvHead) }
	values := func(i int) []float32 { return x.kv.plane(i, p.layer, 1, kvHead) }
	for t := x.first; t < x.end; t++ {
		q := row(row(p.qkv, t, h.qDim()+2*h.kvDim()), head, h.headDim)
		kernel.Attend(row(row(p.attn, t, h.qDim()), head, h.headDim), q, p.worker[worker].scores, x.pos+t-x.first+1, keys, values)
	}
}

func (p *pass) attnOutTile(_, item int) {
	h := &p.model.hparams
	kernel.MatTile(p.delta, p.attn, p.model.weights.layers[p.layer].attnOut, len(p.tokens), h.dim, h.qDim(), item)
}

// ffnNorm adds what attention gave to the stream, and normalises it for the feed-forward network.
func (p *pass) ffnNorm(_, item int) {
	dim := p.model.hparams.dim
	for t := p.pieces[item].first; t < p.pieces[item].end; t++ {
		x := row(p.x, t, dim)
		kernel.Add(x, row(p.delta, t, dim))
		kernel.RMSNorm(row(p.norm, t, dim), x, p.model.weights.layers[p.layer].ffnNorm, p.model.hparams.eps)
	}
}

// gateUpTile computes a tile of both inner products and its activation, while it is in the cache.
func (p *pass) gateUpTile(worker, item int) {
	h, l := &p.model.hparams, &p.model.weights.layers[p.layer]
	kernel.MatTile(p.gate, p.norm, l.gate, len(p.tokens), h.ffn, h.dim, item)
	kernel.MatTile(p.up, p.norm, l.up, len(p.tokens), h.ffn, h.dim, item)
	first, end := item*kernel.RowTile, min((item+1)*kernel.RowTile, h.ffn)
	for t := range p.tokens {
		kernel.SwiGLU(row(p.gate, t, h.ffn)[first:end], row(p.up, t, h.ffn)[first:end], p.worker[worker].ffn)
	}
}

func (p *pass) downTile(_, item int) {
	h := &p.model.hparams
	kernel.MatTile(p.delta, p.gate, p.model.weights.layers[p.layer].down, len(p.tokens), h.dim, h.ffn, item)
}

func (p *pass) finish(_, item int) {
	dim := p.model.hparams.dim
	for t := p.pieces[item].first; t < p.pieces[item].end; t++ {
		kernel.Add(row(p.x, t, dim), row(p.delta, t, dim))
	}
}

// outputTile computes a tile of logits of every row that wants them, while its weights are in the cache.
func (p *pass) outputTile(_, item int) {
	h := &p.model.hparams
	for i, o := range p.outputs {
		kernel.MatTile(o.logits, row(p.norm, i, h.dim), p.model.weights.output, 1, h.vocab, h.dim, item)
	}
}
