package coordinator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/kvtier/kvtier/block"
)

// Names in Redis of warm-up jobs.
const (
	jobsKey   = "kvt1:{ctl}:jobs" // hash: job by id
	jobPrefix = "kvt1:{ctl}:job:" // what belongs to one job: <id>:manifest, <id>:done

	// MaxManifestBytes bounds the manifest of a job: it stands in the control Redis. Larger ones are for kvtier warmup run.
	MaxManifestBytes = 4 << 20
	maxJobBytes      = 64 << 10
	maxJobs          = 64 // the oldest that have ended are forgotten
)

var (
	// ErrNoJob means that there is no job of that name.
	ErrNoJob = errors.New("coordinator: no such warm-up")
	// ErrManifest means that a job's manifest is too long for a coordinator.
	ErrManifest = fmt.Errorf("coordinator: a job's manifest has at most %d bytes, for it stands in the control Redis: use kvtier warmup run, which takes any", MaxManifestBytes)
)

// JobState is how a warm-up job fares.
type JobState string

// States of a job. Only the leader changes a job that runs; what a caller wants is in Job.Want.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobPaused    JobState = "paused"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Ended reports whether nothing more will happen.
func (s JobState) Ended() bool { return s == JobDone || s == JobFailed || s == JobCancelled }

// JobSpec is what a warm-up is asked to do.
type JobSpec struct {
	Model string `json:"model"`
	// CacheSalt is the tenant of prompts that name none.
	CacheSalt string `json:"cache_salt,omitempty"`
	Strict    bool   `json:"strict,omitempty"` // fail at the first broken line

	TokensPerS  float64 `json:"tokens_per_s,omitempty"` // 0 for no bound
	BytesPerS   float64 `json:"bytes_per_s,omitempty"`
	BudgetBytes int64   `json:"budget_bytes,omitempty"`
}

// Job is a warm-up that coordinators carry out: whoever leads does, and goes on where the one before it ended.
type Job struct {
	ID      string        `json:"id"`
	Spec    JobSpec       `json:"spec"`
	Variant block.Variant `json:"variant"` // that was active when the job was made; it is the only one warmed
	State   JobState      `json:"state"`
	Want    JobState      `json:"want"` // running, paused or cancelled
	Who     string        `json:"who,omitempty"`
	Via     string        `json:"via,omitempty"` // coordinator that worked on it last
	Created int64         `json:"created"`       // unix ms
	Ended   int64         `json:"ended,omitzero"`
	Error   string        `json:"error,omitempty"` // why it failed
	// Plan names the order of the tasks that done is about: another plan, of another release perhaps, begins anew.
	Plan   string          `json:"plan,omitempty"`
	Report json.RawMessage `json:"report,omitempty"` // as kvtier warmup run --json prints it
}

func (s JobSpec) validate() error {
	if err := ValidateModel(s.Model); err != nil {
		return err
	}
	if len(s.CacheSalt) > 256 || s.TokensPerS < 0 || s.BytesPerS < 0 || s.BudgetBytes < 0 {
		return fmt.Errorf("%w: warm-up: a rate or budget is negative, or cache_salt is longer than 256 bytes", ErrInvalid)
	}
	return nil
}

// jobScript replaces a job if it still is what was read; the leader's writes carry its lease. KEYS: jobs, lease. ARGV: id, old, new, lease or "".
var jobScript = redis.NewScript(`
if ARGV[4] ~= '' and redis.call('GETRANGE', KEYS[2], 0, 128) ~= ARGV[4] then return -1 end
local cur = redis.call('HGET', KEYS[1], ARGV[1])
if (cur or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1`)

// storedJob is a job as it was read.
type storedJob struct {
	Job
	raw string
}

// jobs reads all jobs, oldest first. Damaged ones are left out.
func (c *Control) jobs(ctx context.Context) ([]storedJob, error) {
	all, err := c.rdb.HGetAll(ctx, jobsKey).Result()
	if err != nil {
		return nil, fmt.Errorf("coordinator: read warm-ups: %w", err)
	}
	var jobs []storedJob
	for id, raw := range all {
		if j, err := decodeJob(id, raw); err == nil {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b storedJob) int { return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID)) })
	return jobs, nil
}

func (c *Control) job(ctx context.Context, id string) (storedJob, error) {
	if validateName("the id of a warm-up", id) != nil {
		return storedJob{}, fmt.Errorf("%w: %.64q", ErrNoJob, id)
	}
	raw, err := c.rdb.HGet(ctx, jobsKey, id).Result()
	if errors.Is(err, redis.Nil) {
		return storedJob{}, fmt.Errorf("%w: %s", ErrNoJob, id)
	}
	if err != nil {
		return storedJob{}, fmt.Errorf("coordinator: read warm-up: %w", err)
	}
	return decodeJob(id, raw)
}

func decodeJob(id, raw string) (storedJob, error) {
	j := storedJob{raw: raw}
	if len(raw) > maxJobBytes || json.Unmarshal([]byte(raw), &j.Job) != nil || j.ID != id || j.Spec.validate() != nil {
		return j, fmt.Errorf("%w: warm-up %s", ErrRecord, id)
	}
	return j, nil
}

// swapJob writes next over prev, which the zero storedJob says is none: ErrConflict if it has changed.
func (c *Control) swapJob(ctx context.Context, prev storedJob, next Job, fence string) (storedJob, error) {
	b, err := json.Marshal(next)
	if err != nil || len(b) > maxJobBytes {
		return prev, fmt.Errorf("%w: warm-up of %d bytes: %w", ErrInvalid, len(b), err)
	}
	ok, err := jobScript.Run(ctx, c.rdb, []string{jobsKey, leaseKey}, next.ID, prev.raw, string(b), fence).Int()
	switch {
	case err != nil:
		return prev, fmt.Errorf("coordinator: write warm-up: %w", err)
	case ok < 0:
		return prev, ErrDeposed
	case ok == 0:
		return prev, fmt.Errorf("%w: warm-up %s", ErrConflict, next.ID)
	}
	return storedJob{Job: next, raw: string(b)}, nil
}

// changeJob changes a job until nobody else does so at the same time.
func (c *Control) changeJob(ctx context.Context, id, fence string, change func(*Job) error) (Job, error) {
	for range 8 {
		prev, err := c.job(ctx, id)
		if err != nil {
			return Job{}, err
		}
		next := prev.Job
		if err := change(&next); err != nil {
			return prev.Job, err
		}
		if reflect.DeepEqual(prev.Job, next) {
			return prev.Job, nil
		}
		stored, err := c.swapJob(ctx, prev, next, fence)
		if !errors.Is(err, ErrConflict) {
			return stored.Job, err
		}
	}
	return Job{}, fmt.Errorf("%w: warm-up %s", ErrConflict, id)
}

// addJob stores a manifest and then the job that it is of, and makes room for it.
func (c *Control) addJob(ctx context.Context, j Job, manifest string) error {
	jobs, err := c.jobs(ctx)
	if err != nil {
		return err
	}
	for i := 0; len(jobs) >= maxJobs; {
		if i == len(jobs) {
			return fmt.Errorf("%w: %d warm-ups wait or run already: cancel some", ErrInvalid, len(jobs))
		}
		if !jobs[i].State.Ended() {
			i++
			continue
		}
		if err := c.forgetJob(ctx, jobs[i].ID); err != nil {
			return err
		}
		jobs = slices.Delete(jobs, i, i+1)
	}
	if err := c.rdb.Set(ctx, jobPrefix+j.ID+":manifest", manifest, 0).Err(); err != nil {
		return fmt.Errorf("coordinator: store manifest: %w", err)
	}
	_, err = c.swapJob(ctx, storedJob{}, j, "")
	return err
}

func (c *Control) forgetJob(ctx context.Context, id string) error {
	_, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HDel(ctx, jobsKey, id)
		p.Del(ctx, jobPrefix+id+":manifest", jobPrefix+id+":done")
		return nil
	})
	return err
}

// dropWork forgets what a job that has ended needs no more.
func (c *Control) dropWork(ctx context.Context, id string) error {
	return c.rdb.Del(ctx, jobPrefix+id+":manifest", jobPrefix+id+":done").Err()
}

func (c *Control) manifest(ctx context.Context, id string) (string, error) {
	s, err := c.rdb.GetRange(ctx, jobPrefix+id+":manifest", 0, MaxManifestBytes).Result()
	if err == nil && s == "" {
		err = errors.New("the manifest is gone")
	}
	return s, err
}

// doneTasks reads which tasks of a job are done, as a bitmap in Redis' order of bits.
func (c *Control) doneTasks(ctx context.Context, id string) ([]byte, error) {
	b, err := c.rdb.GetRange(ctx, jobPrefix+id+":done", 0, maxDoneBytes).Bytes()
	if errors.Is(err, redis.Nil) {
		err = nil
	}
	return b, err
}

// maxDoneBytes is a bit for each task that MaxManifestBytes can name, and more.
const maxDoneBytes = 1 << 20

func (c *Control) markTask(ctx context.Context, id string, task int) error {
	if task < 0 || task >= 8*maxDoneBytes {
		return fmt.Errorf("%w: task %s", ErrInvalid, strconv.Itoa(task))
	}
	return c.rdb.SetBit(ctx, jobPrefix+id+":done", int64(task), 1).Err()
}

func (c *Control) clearTasks(ctx context.Context, id string) error {
	return c.rdb.Del(ctx, jobPrefix+id+":done").Err()
}
