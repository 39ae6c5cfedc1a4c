package warmup

import "iter"

// Task is a stretch of blocks that exists once in a plan, and how to get it: by warming the first To blocks of a prompt that has it.
type Task struct {
	ID       int
	From, To int  // blocks; From equals To where a prompt adds nothing to what others have
	Final    bool // completes a prompt

	rec      record
	parent   *Task // what computes the blocks before From; nil for none
	children []*Task
	attempts int
	ended    bool
	failed   bool
}

// tasks walks a plan. A stretch that several prompts share comes before what builds on it: for each prompt, whatever it shares with the next
// one beyond what the one before had is a task of its own, so that others need not wait for the rest of it.
//
// Where prompts part in the middle of an earlier task's stretch, the later ones wait for all of that task: the walk looks ahead by one
// prompt only. That costs time in rare cases and never computes a block twice.
func (p *Plan) tasks() iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		id := 0
		for _, g := range p.groups {
			var path []*Task // the tasks that cover the chain of the record before
			emit := func(r record, from, to int, final bool) (*Task, bool) {
				t := &Task{ID: id, From: from, To: to, Final: final, rec: r}
				id++
				if len(path) > 0 {
					t.parent = path[len(path)-1]
				}
				if from < to {
					path = append(path, t)
				}
				return t, yield(t, nil)
			}
			one := func(r record, next int) bool {
				for len(path) > 0 && path[len(path)-1].From >= r.shared {
					path = path[:len(path)-1]
				}
				from := r.shared
				if next > from && next < r.blocks {
					if _, ok := emit(r, from, next, false); !ok {
						return false
					}
					from = next
				}
				_, ok := emit(r, from, r.blocks, true)
				return ok
			}
			var held record
			have := false
			for r, err := range p.records(g) {
				if err != nil {
					yield(nil, err)
					return
				}
				if have && !one(held, r.shared) {
					return
				}
				held, have = r, true
			}
			if have && !one(held, 0) {
				return
			}
		}
	}
}
