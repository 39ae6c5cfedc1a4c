package warmup

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Journal remembers which tasks of a plan are done. It is safe for concurrent use.
type Journal interface {
	Done(task int) bool
	Mark(ctx context.Context, task int) error
}

// Run names what a journal is about: what was done for other weights or another plan says nothing about this one.
type Run struct {
	Plan    string `json:"plan"`    // Plan.Digest
	Variant string `json:"variant"` // of the weights
	Epoch   uint64 `json:"epoch"`
}

// ErrJournal means that a journal belongs to another run.
var ErrJournal = errors.New("warmup: the journal belongs to another run")

// bitmap is a set of task numbers.
type bitmap []uint64

func (b bitmap) has(i int) bool { return i>>6 < len(b) && b[i>>6]>>(i&63)&1 == 1 }

func (b *bitmap) set(i int) {
	for i>>6 >= len(*b) {
		*b = append(*b, make([]uint64, 1024)...)
	}
	(*b)[i>>6] |= 1 << (i & 63)
}

// FileJournal is a Journal in a file: a line of JSON that names the run, then one task number per line. A line that a crash has cut short
// is left out.
type FileJournal struct {
	f    *os.File
	mu   sync.Mutex
	done bitmap
	n    int
}

// maxTasks bounds what a journal may claim.
const maxTasks = 1 << 31

// OpenJournal opens or makes the journal at path. One of another run is ErrJournal, unless restart says to begin anew.
func OpenJournal(path string, run Run, restart bool) (j *FileJournal, err error) {
	flags := os.O_RDWR | os.O_CREATE
	if restart {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	j = &FileJournal{f: f}
	good, err := j.replay(run)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if good == 0 {
		head, err := json.Marshal(run)
		if err != nil {
			return nil, err
		}
		if _, err := f.WriteAt(append(head, '\n'), 0); err != nil {
			return nil, err
		}
		good = int64(len(head) + 1)
	}
	if err := f.Truncate(good); err != nil {
		return nil, err
	}
	_, err = f.Seek(good, io.SeekStart)
	return j, err
}

// replay reads what is there and returns how many bytes of it are whole lines.
func (j *FileJournal) replay(run Run) (good int64, err error) {
	in := bufio.NewReader(j.f)
	for first := true; ; first = false {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return good, nil
		}
		if err != nil {
			return good, err
		}
		text := strings.TrimSuffix(line, "\n")
		if first {
			var was Run
			if err := json.Unmarshal([]byte(text), &was); err != nil {
				return 0, errors.New("not a journal of kvtier warmup")
			}
			if was != run {
				return 0, fmt.Errorf("%w: its plan is %.16s for variant %.16s, epoch %d; this one is %s for %s, epoch %d (--restart begins anew)",
					ErrJournal, was.Plan, was.Variant, was.Epoch, run.Plan, run.Variant, run.Epoch)
			}
		} else {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 || n >= maxTasks {
				return good, nil // torn: what follows is done again
			}
			if !j.done.has(n) {
				j.n++
			}
			j.done.set(n)
		}
		good += int64(len(line))
	}
}

// Len is how many tasks are done.
func (j *FileJournal) Len() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.n
}

// Done implements Journal.
func (j *FileJournal) Done(task int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.done.has(task)
}

// Mark implements Journal. It is written at once, for the sake of a process that is killed, and not forced to disk: what a crash
// of the machine loses is looked up again and not computed.
func (j *FileJournal) Mark(_ context.Context, task int) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.done.has(task) {
		j.n++
	}
	j.done.set(task)
	_, err := j.f.WriteString(strconv.Itoa(task) + "\n")
	return err
}

// Close closes the file.
func (j *FileJournal) Close() error { return j.f.Close() }
