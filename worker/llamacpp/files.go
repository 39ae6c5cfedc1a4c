package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// slotSuffix ends the names of this package's files in a slot directory.
const slotSuffix = ".kvtier-slot"

// staleAfter is how old a file must be to be somebody's who has crashed.
const staleAfter = 10 * time.Minute

// savedSlot is a slot file whose name is gone already: its bytes live as long as it is open.
type savedSlot struct {
	*slotFile
	file *os.File
}

func (s *savedSlot) Close() error { return s.file.Close() }

func (e *Engine) fileName(slot int, use string) string {
	return fmt.Sprintf("%s-%d-%s%s", e.id, slot, use, slotSuffix)
}

// readSlot has the server write a slot down, and opens what it wrote.
func (e *Engine) readSlot(ctx context.Context, slot int) (*savedSlot, error) {
	name := e.fileName(slot, "out")
	defer e.remove(name) // also of a file that the server could not finish
	saved, err := e.client.save(ctx, slot, name)
	if err != nil {
		return nil, err
	}
	f, err := e.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("llamacpp: llama-server says that it has written %s, but it is not in %s: is that its --slot-save-path?", name, e.opts.SlotsDir)
	}
	if err != nil {
		return nil, fmt.Errorf("llamacpp: slot file: %w", err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%w: %s is no file", ErrSlotFile, name), err, f.Close())
	}
	p, err := parseSlotFile(f, st.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if len(p.tokens) != saved {
		return nil, errors.Join(fmt.Errorf("%w: it has %d tokens, llama-server says %d", ErrSlotFile, len(p.tokens), saved), f.Close())
	}
	return &savedSlot{slotFile: p, file: f}, nil
}

// writeSlot writes a slot file and has the server read it into a slot.
func (e *Engine) writeSlot(ctx context.Context, slot int, w *slotWriter) (err error) {
	name := e.fileName(slot, "in")
	e.remove(name) // of an attempt that ended badly; and nothing is ever written through a link
	f, err := e.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("llamacpp: slot file: %w", err)
	}
	defer e.remove(name)
	err = errors.Join(f.Chmod(0o644), w.writeTo(f)) // the server may be another user
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("llamacpp: slot file: %w", err)
	}
	n, err := e.client.restore(ctx, slot, name)
	if err == nil && n != len(w.tokens) {
		err = fmt.Errorf("%w: it took %d of %d tokens from a slot file", ErrServer, n, len(w.tokens))
	}
	return err
}

// remove does what it can: names are used again, and what is left is swept in the end.
func (e *Engine) remove(name string) { _ = e.root.Remove(name) }

// sweep removes what workers left behind that crashed.
func (e *Engine) sweep() {
	entries, err := fs.ReadDir(e.root.FS(), ".")
	if err != nil {
		return // whoever writes there next will say it
	}
	for _, entry := range entries {
		if st, err := entry.Info(); err == nil && strings.HasSuffix(entry.Name(), slotSuffix) && time.Since(st.ModTime()) > staleAfter {
			e.remove(entry.Name())
		}
	}
}
