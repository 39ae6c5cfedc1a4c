package warmup

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/store"
	"github.com/kvtier/kvtier/worker"
)

// ErrOther means that an archive is of other weights, another layout or another cluster.
var ErrOther = errors.New("warmup: the archive belongs to something else")

// Transfer counts what an export or import has moved; names of fields are stable.
type Transfer struct {
	Prompts int64   `json:"prompts,omitempty"` // exported
	Blocks  int64   `json:"blocks"`
	Missing int64   `json:"missing"` // blocks that are not stored, or of another epoch
	Frames  int64   `json:"frames"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// HeaderOf describes what a worker's archive is of.
func HeaderOf(info worker.WarmInfo, now time.Time) ArchiveHeader {
	return ArchiveHeader{Model: info.Model, Label: info.Label, Weights: info.Weights, Layout: info.LayoutSpec, Root: info.Root, Created: now.UnixMilli()}
}

// formatOf is the format of what a worker stores. A worker whose layout has another digest than we give it stores under other names and in
// other parts: without the check all of its blocks would be missing.
func formatOf(info worker.WarmInfo) (*codec.Format, error) {
	format, err := codec.NewFormat(info.LayoutSpec)
	if err != nil {
		return nil, fmt.Errorf("%w: what it says of its K/V makes no sense: %w", ErrWorker, err)
	}
	if info.LayoutSpec.Digest() != info.Layout {
		return nil, fmt.Errorf("%w: it is of a release with another wire format than %d: use the kvtier of that release", ErrWorker, codec.Major)
	}
	return format, nil
}

// Export writes what the tier has of a plan's blocks. Names come from a worker, since only workers have the secret that they are made with. Values
// that do not pass their checks count as missing.
func (p *Plan) Export(ctx context.Context, r *Remote, s store.Store, info worker.WarmInfo, out io.Writer, progress func(Transfer)) (t Transfer, err error) {
	start := time.Now()
	defer func() { t.Seconds = time.Since(start).Seconds() }()
	format, err := formatOf(info)
	if err != nil {
		return t, err
	}
	a, err := NewArchiveWriter(out, HeaderOf(info, start))
	if err != nil {
		return t, err
	}
	x := exporter{format: format, store: s, info: info, out: a}
	for task, err := range p.tasks() {
		if err != nil {
			return t, err
		}
		if task.Final {
			t.Prompts++
		}
		if task.From == task.To {
			continue
		}
		req, err := p.request(ctx, task)
		if err != nil {
			return t, err
		}
		hashes, ns, err := r.Hashes(ctx, req)
		if err != nil {
			return t, err
		}
		if len(hashes) != task.To {
			return t, fmt.Errorf("%s: %d hashes for %d blocks", r.Name(), len(hashes), task.To)
		}
		if err := x.blocks(ctx, hashes[task.From:task.To], ns, &t); err != nil {
			return t, err
		}
		if progress != nil {
			progress(t)
		}
	}
	return t, a.Close()
}

// exporter copies blocks from a store into an archive.
type exporter struct {
	format  *codec.Format
	store   store.Store
	info    worker.WarmInfo
	out     *ArchiveWriter
	scratch codec.Scratch
}

// blocks writes the complete ones of hashes.
func (x *exporter) blocks(ctx context.Context, hashes []block.Hash, ns block.Digest, t *Transfer) error {
	l := x.format.Layout()
	names := block.NewKeys(x.info.Variant, x.info.Epoch, l.PartCount())
	for _, h := range hashes {
		keys, bufs := names.Append(nil, []block.Hash{h}), make([][]byte, l.PartCount())
		for i := range keys {
			bufs[i] = make([]byte, x.format.MaxFrameBytes(l.Part(i))+store.Spare)
		}
		t.Blocks++
		var frames [][]byte
		var failed error
		for n, err := range x.store.Get(ctx, keys, bufs) {
			i := len(frames)
			if err != nil {
				failed = err
				break
			}
			frame := append([]byte(nil), bufs[i][:n]...) // checking may decode in place
			want := codec.Header{Identity: x.identity(), Namespace: ns, Epoch: x.info.Epoch, Act: codec.Act(x.info.Act[:]), Hash: h, Part: i}
			if _, _, failed = x.format.OpenAny(bufs[i], n, want, &x.scratch); failed != nil {
				break
			}
			frames = append(frames, frame)
		}
		if store.IsFault(failed) && !errors.Is(failed, codec.ErrCorrupt) && !errors.Is(failed, codec.ErrForeign) && !errors.Is(failed, codec.ErrVersion) {
			return failed
		}
		if failed != nil || len(frames) < len(keys) {
			t.Missing++
			continue
		}
		for _, f := range frames {
			if err := x.out.Add(f); err != nil {
				return err
			}
			t.Frames++
			t.Bytes += int64(len(f))
		}
	}
	return nil
}

func (x *exporter) identity() block.Identity {
	return block.Identity{Weights: x.info.Weights, Layout: x.info.Layout}
}

// Check reports whether an archive can be imported where info is from: ErrOther says what differs.
func (h ArchiveHeader) Check(info worker.WarmInfo) error {
	switch {
	case h.Weights != info.Weights:
		return fmt.Errorf("%w: it is of weights %s (%s), the worker serves %s (%s)", ErrOther, h.Weights.Short(), h.Label, info.Weights.Short(), info.Label)
	case h.Layout.Digest() != info.Layout:
		return fmt.Errorf("%w: its K/V layout is %+v, the worker's %+v", ErrOther, h.Layout, info.LayoutSpec)
	case h.Root != info.Root:
		return fmt.Errorf("%w: it was made under another cluster secret, where prompts have other names", ErrOther)
	}
	return nil
}

// importBatch bounds the bytes of one write.
const importBatch = 8 << 20

// Import stores the frames of an archive under the epoch that info names. Each is verified, and sealed anew for that epoch.
func Import(ctx context.Context, a *ArchiveReader, s store.Store, info worker.WarmInfo, ttl time.Duration, progress func(Transfer)) (t Transfer, err error) {
	start := time.Now()
	defer func() { t.Seconds = time.Since(start).Seconds() }()
	format, err := formatOf(info)
	if err != nil {
		return t, err
	}
	if err := a.Header.Check(info); err != nil {
		return t, err
	}
	var batch []store.Item
	size := 0
	flush := func() error {
		if err := s.Put(ctx, batch, ttl); err != nil {
			return err
		}
		for _, it := range batch {
			t.Bytes += int64(len(it.Value))
		}
		t.Frames += int64(len(batch))
		t.Blocks = t.Frames / int64(len(format.Parts()))
		batch, size = batch[:0], 0
		if progress != nil {
			progress(t)
		}
		return nil
	}
	m := importer{format: format, info: info}
	for {
		raw, err := a.Next()
		if errors.Is(err, io.EOF) {
			return t, flush()
		}
		if err != nil {
			return t, errors.Join(err, flush())
		}
		item, err := m.item(raw)
		if err != nil {
			return t, errors.Join(err, flush())
		}
		if batch = append(batch, item); size+len(item.Value) > importBatch {
			if err := flush(); err != nil {
				return t, err
			}
			continue
		}
		size += len(item.Value)
	}
}

// importer makes values of one epoch out of frames of any.
type importer struct {
	format  *codec.Format
	info    worker.WarmInfo
	scratch codec.Scratch
}

// item verifies a frame, in full, and seals its payload for the importer's epoch; one that was encoded is encoded again.
func (m *importer) item(raw []byte) (store.Item, error) {
	said, err := codec.Inspect(raw)
	if errors.Is(err, codec.ErrVersion) {
		return store.Item{}, fmt.Errorf("%w: a release with another wire format exported it, export it again: %w", ErrOther, err)
	}
	if err != nil {
		return store.Item{}, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	h := said.Header
	l := m.format.Layout()
	if h.Identity != (block.Identity{Weights: m.info.Weights, Layout: m.info.Layout}) || h.Part < 0 || h.Part >= l.PartCount() {
		return store.Item{}, fmt.Errorf("%w: a frame is of another identity than the archive's header says", ErrArchive)
	}
	part := l.Part(h.Part)
	buf := make([]byte, max(m.format.MaxFrameBytes(part), len(raw)))
	copy(buf, raw)
	_, payload, err := m.format.OpenAny(buf, len(raw), h, &m.scratch)
	if err != nil {
		return store.Item{}, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	frame := make([]byte, m.format.FrameBytes(part))
	copy(m.format.Payload(frame), payload)
	h.Epoch, h.Act = m.info.Epoch, codec.Act(m.info.Act[:])
	if err := m.format.Seal(frame, h); err != nil {
		return store.Item{}, err
	}
	if out, ok := m.format.Encode(nil, frame, said.Encoding, &m.scratch); ok {
		frame = out
	}
	return store.Item{Key: block.Key(m.info.Variant, m.info.Epoch, h.Hash, h.Part), Value: frame}, nil
}

// Hashes asks what the full blocks of a request's tokens are called, and for the tenant's namespace.
func (r *Remote) Hashes(ctx context.Context, req Request) ([]block.Hash, block.Digest, error) {
	var a worker.WarmAnswer
	if err := r.call(ctx, "POST", "/v1/warm", worker.WarmBody{Tokens: req.Tokens, CacheSalt: req.Salt, Variant: r.variant, Names: true}, &a); err != nil {
		return nil, block.Digest{}, err
	}
	hashes := make([]block.Hash, len(a.Hashes))
	for i, s := range a.Hashes {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b) != block.HashSize {
			return nil, block.Digest{}, fmt.Errorf("%s: %.60q is no hash", r.base, s)
		}
		hashes[i] = block.Hash(b)
	}
	if a.Namespace == nil {
		return nil, block.Digest{}, fmt.Errorf("%s: not the answer of a kvtier worker", r.base)
	}
	return hashes, *a.Namespace, nil
}
