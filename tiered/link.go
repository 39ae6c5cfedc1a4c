package tiered

import (
	"sync/atomic"
	"time"

	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/internal/ewma"
	"github.com/kvtier/kvtier/store"
)

// link measures the way to the remote tier and decides whether encoding payloads pays there. Both the writer and the reader spend time on it,
// and the bytes saved save time twice, too: with r bytes becoming one and a link of b bytes per second, encoding pays when
//
//	2·(1 − 1/r)/b > 1/encode + 1/decode
//
// Bandwidth, ratio and encoding speed are moving averages of what this cache saw; decoding is taken to need three quarters of the time of
// encoding, which errs to the side of not encoding. Until a first batch has been stored raw, nothing is encoded.
//
// But for the counters it belongs to the spill loop.
type link struct {
	bandwidth ewma.Average // bytes per second of stored values
	ratio     ewma.Average // length of a frame, encoded over raw
	encoding  ewma.Average // raw bytes per second
	scratch   codec.Scratch
	buffers   [][]byte

	storedBytes, encodedBytes atomic.Int64
}

const (
	// assumedRatio and assumedSpeed stand until something has been encoded.
	assumedRatio = 1 / 1.4
	assumedSpeed = 0.8e9
	// decodeShare is the time that decoding takes, as a part of encoding.
	decodeShare = 0.75
)

// pays evaluates the rule.
func (l *link) pays() bool {
	if l.bandwidth == 0 {
		return false
	}
	saved := 2 * (1 - l.ratio.Or(assumedRatio)) / float64(l.bandwidth)
	return saved > (1+decodeShare)/l.encoding.Or(assumedSpeed)
}

// items is what a batch stores: its frames, or what they are encoded into. The buffers are used again for the next batch.
func (l *link) items(f *codec.Format, e codec.Encoding, batch []*entry) []store.Item {
	encode := e != codec.Raw && l.pays()
	items := make([]store.Item, 0, len(batch)*f.Layout().PartCount())
	start, raw, encoded := time.Now(), 0, 0
	for _, b := range batch {
		for p, frame := range b.frames {
			value := frame
			if encode {
				if len(items) == len(l.buffers) {
					l.buffers = append(l.buffers, make([]byte, 0, len(frame)))
				}
				out, ok := f.Encode(l.buffers[len(items)][:0], frame, e, &l.scratch)
				l.buffers[len(items)] = out
				if ok {
					value = out
					l.encodedBytes.Add(int64(len(value)))
				}
				raw += len(frame)
				encoded += len(value)
			}
			items = append(items, store.Item{Key: b.key(p), Value: value})
		}
	}
	if raw > 0 {
		l.ratio.Add(float64(encoded) / float64(raw))
		l.encoding.Add(float64(raw) / max(time.Since(start).Seconds(), 1e-9))
	}
	return items
}

// measured takes in how long a batch was on its way.
func (l *link) measured(items []store.Item, d time.Duration) {
	sum := 0
	for _, it := range items {
		sum += len(it.Value)
	}
	l.bandwidth.Add(float64(sum) / max(d.Seconds(), 1e-9))
	l.storedBytes.Add(int64(sum))
}
