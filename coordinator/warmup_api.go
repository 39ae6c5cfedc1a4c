package coordinator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// WarmupRequest is the body of POST /v1/warmups.
type WarmupRequest struct {
	JobSpec
	// Manifest is JSONL, a prompt per line; see docs/WARMUP.md. It names no files.
	Manifest string `json:"manifest"`
}

// WarmupList is the answer to GET /v1/warmups.
type WarmupList struct {
	Warmups []Job `json:"warmups"`
}

// AddWarmup makes a job. Whoever leads carries it out.
func (c *Coordinator) AddWarmup(ctx context.Context, q WarmupRequest) (Job, error) {
	if len(q.Manifest) > MaxManifestBytes {
		return Job{}, fmt.Errorf("%w; this one has %d", ErrManifest, len(q.Manifest))
	}
	if c.opt.Warmer == nil {
		return Job{}, fmt.Errorf("%w: this coordinator carries out no warm-ups", ErrInvalid)
	}
	if err := q.validate(); err != nil {
		return Job{}, err
	}
	if q.Manifest == "" {
		return Job{}, fmt.Errorf("%w: the manifest is empty", ErrInvalid)
	}
	if err := c.opt.Warmer.Check(q.JobSpec, q.Manifest); err != nil {
		return Job{}, httpapi.BadRequest("invalid_manifest", "manifest", err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	found, err := c.opt.Control.Load(ctx, q.Model)
	if err != nil {
		return Job{}, err
	}
	versions := found.Versions()
	if len(versions) == 0 || versions[0].State != Active {
		return Job{}, fmt.Errorf("%w: %s has no active version to warm", ErrNoVersion, q.Model)
	}
	j := Job{
		ID: strings.ToLower(rand.Text()[:12]), Spec: q.JobSpec, Variant: versions[0].Variant, State: JobQueued, Want: JobRunning,
		Who: actorOf(ctx), Created: millis(c.opt.Now()),
	}
	return j, c.opt.Control.addJob(ctx, j, q.Manifest)
}

// Warmups lists the jobs, oldest first.
func (c *Coordinator) Warmups(ctx context.Context) (WarmupList, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	jobs, err := c.opt.Control.jobs(ctx)
	l := WarmupList{Warmups: make([]Job, 0, len(jobs))}
	for _, j := range jobs {
		l.Warmups = append(l.Warmups, j.Job)
	}
	return l, err
}

// Warmup returns one job.
func (c *Coordinator) Warmup(ctx context.Context, id string) (Job, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	j, err := c.opt.Control.job(ctx, id)
	return j.Job, err
}

// SteerWarmup says what a job shall do: JobRunning, JobPaused or JobCancelled. One that has ended stays as it is: to cancel it is done already,
// since whoever cancels cannot know that it has just ended; anything else is ErrInvalid.
func (c *Coordinator) SteerWarmup(ctx context.Context, id string, want JobState) (Job, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return c.opt.Control.changeJob(ctx, id, "", func(j *Job) error {
		if j.State.Ended() && want == JobCancelled {
			return nil
		}
		if j.State.Ended() {
			return fmt.Errorf("%w: warm-up %s is %s already", ErrInvalid, id, j.State)
		}
		j.Want = want
		return nil
	})
}

func (c *Coordinator) warmupRoutes() []route {
	steer := func(want JobState) http.Handler {
		return answer(func(r *http.Request) (any, error) { return c.SteerWarmup(withCaller(r), r.PathValue("id"), want) })
	}
	return []route{
		{"GET /v1/warmups", answer(func(r *http.Request) (any, error) { return c.Warmups(r.Context()) })},
		{"POST /v1/warmups", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var q WarmupRequest
			// JSON writes a character in up to six bytes.
			if err := httpapi.ReadJSON(w, r, 6*MaxManifestBytes+maxJobBytes, &q); err != nil {
				if e, ok := errors.AsType[*httpapi.Error](err); ok && e.Status == http.StatusRequestEntityTooLarge {
					err = apiError(ErrManifest)
				}
				httpapi.WriteError(w, err)
				return
			}
			answer(func(r *http.Request) (any, error) { return c.AddWarmup(withCaller(r), q) })(w, r)
		})},
		{"GET /v1/warmups/{id}", answer(func(r *http.Request) (any, error) { return c.Warmup(r.Context(), r.PathValue("id")) })},
		{"POST /v1/warmups/{id}/pause", steer(JobPaused)},
		{"POST /v1/warmups/{id}/resume", steer(JobRunning)},
		{"POST /v1/warmups/{id}/cancel", steer(JobCancelled)},
	}
}

// AddWarmup makes a warm-up job.
func (c *Client) AddWarmup(ctx context.Context, q WarmupRequest) (j Job, err error) {
	return j, c.do(ctx, http.MethodPost, c.base.JoinPath("v1", "warmups"), q, &j)
}

// Warmups lists the warm-up jobs, oldest first.
func (c *Client) Warmups(ctx context.Context) ([]Job, error) {
	var l WarmupList
	err := c.do(ctx, http.MethodGet, c.base.JoinPath("v1", "warmups"), nil, &l)
	return l.Warmups, err
}

// Warmup returns one job.
func (c *Client) Warmup(ctx context.Context, id string) (j Job, err error) {
	if err := validateName("the id of a warm-up", id); err != nil {
		return j, fmt.Errorf("%w: %.64q", ErrNoJob, id)
	}
	return j, c.do(ctx, http.MethodGet, c.base.JoinPath("v1", "warmups", id), nil, &j)
}

// SteerWarmup pauses, resumes or cancels a job; action is the last word of the route.
func (c *Client) SteerWarmup(ctx context.Context, id, action string) (j Job, err error) {
	if err := validateName("the id of a warm-up", id); err != nil {
		return j, fmt.Errorf("%w: %.64q", ErrNoJob, id)
	}
	return j, c.do(ctx, http.MethodPost, c.base.JoinPath("v1", "warmups", id, action), struct{}{}, &j)
}
