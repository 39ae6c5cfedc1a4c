package llama

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/kvtier/kvtier/block"
)

// DigestSuffix is appended to a model file's name for the note of its digest.
const DigestSuffix = ".kvtier-digest"

// stamp tells one state of a file from another without reading it.
type stamp struct {
	Device  uint64 `json:"device"`
	Inode   uint64 `json:"inode"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mtime"` // unix ns
}

type note struct {
	V       int          `json:"v"`
	Stamp   stamp        `json:"file"`
	Weights block.Digest `json:"weights"`
}

const (
	noteVersion  = 1
	maxNoteBytes = 4 << 10
	// settled is how long a file must have been left alone before its time of modification tells anything: clocks of file systems
	// are coarse, so a second write may not show.
	settled = 2 * time.Second
)

// IdentifyNoted is Identify that remembers: beside the file, or in the user's cache directory where that cannot be written. Only GGUF
// files have notes: a Hugging Face checkpoint is several files, and all of them are read every time. A
// note holds only for the same device, inode, size and time of modification, and it is a claim, not a proof: noted says that
// the identity comes from one. Serve only weights whose digest was computed from the bytes that were loaded (Open does that),
// and call Identify when there is time: it disproves a false note.
func IdentifyNoted(path string, opts Options) (id block.Identity, noted bool, err error) {
	before, ok := stampOf(path)
	ok = ok && !isCheckpoint(path)
	if ok {
		for _, place := range notePlaces(path) {
			if w, ok := readNote(place, before); ok {
				if layout, err := layoutOf(path, opts); err == nil {
					return block.Identity{Weights: w, Layout: layout.Digest()}, true, nil
				}
			}
		}
	}
	if id, err = Identify(path, opts); err != nil {
		return id, false, err
	}
	if after, still := stampOf(path); ok && still && after == before && time.Since(time.Unix(0, after.ModTime)) > settled {
		writeNote(path, note{noteVersion, after, id.Weights})
	}
	return id, false, nil
}

// ForgetNote removes what IdentifyNoted has noted of a file.
func ForgetNote(path string) {
	for _, place := range notePlaces(path) {
		_ = os.Remove(place) // it may not be there
	}
}

func notePlaces(path string) []string {
	places := []string{path + DigestSuffix}
	if dir, err := os.UserCacheDir(); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			sum := sha256.Sum256([]byte(abs))
			places = append(places, filepath.Join(dir, "kvtier", hex.EncodeToString(sum[:16])+DigestSuffix))
		}
	}
	return places
}

// readNote believes nothing but a note of exactly this state of the file.
func readNote(place string, want stamp) (block.Digest, bool) {
	st, err := os.Stat(place)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxNoteBytes {
		return block.Digest{}, false
	}
	b, err := os.ReadFile(place)
	if err != nil {
		return block.Digest{}, false
	}
	var n note
	if json.Unmarshal(b, &n) != nil || n.V != noteVersion || n.Stamp != want || n.Weights.IsZero() {
		return block.Digest{}, false
	}
	return n.Weights, true
}

// writeNote does what it can: without a note the file is read again next time.
func writeNote(path string, n note) {
	b, err := json.Marshal(n)
	if err != nil {
		return
	}
	for i, place := range notePlaces(path) {
		if i > 0 && os.MkdirAll(filepath.Dir(place), 0o700) != nil {
			continue
		}
		if replaceFile(place, append(b, '\n')) == nil {
			return
		}
	}
}

// replaceFile makes a file appear whole or not at all.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".kvtier-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func layoutOf(path string, opts Options) (block.Layout, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return block.Layout{}, err
	}
	src, err := openSource(path)
	if err != nil {
		return block.Layout{}, err
	}
	defer src.close()
	return src.hparams.layout(opts.BlockTokens), nil
}
