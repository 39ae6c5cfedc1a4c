package coordinator

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the coordinator's own, in a registry of its own. What can be read off the state is collected when asked for.
type metrics struct {
	registry    *prometheus.Registry
	transitions *prometheus.CounterVec
	reasserts   *prometheus.CounterVec

	conflicts, errors, hintErrors, reclaimed, reclaimErrors, takeovers prometheus.Counter
}

func newMetrics(c *Coordinator) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "kvtier_coordinator_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kvtier_coordinator_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		registry:      prometheus.NewRegistry(),
		transitions:   vec("transitions_total", "Changes of control records, by kind.", "kind"),
		reasserts:     vec("reasserts_total", "Records written again because Redis had lost or changed them, by reason.", "reason"),
		conflicts:     counter("conflicts_total", "Writes that another coordinator's came before."),
		errors:        counter("reconcile_errors_total", "Rounds or models that could not be reconciled."),
		hintErrors:    counter("hint_errors_total", "Invalidation hints that could not be published; workers poll anyway."),
		reclaimed:     counter("reclaimed_keys_total", "Entries of dead epochs deleted."),
		reclaimErrors: counter("reclaim_errors_total", "Passes over dead epochs that failed and will be resumed."),
		takeovers:     counter("takeovers_total", "Times that this coordinator began to lead."),
	}
	m.registry.MustRegister(m.transitions, m.reasserts, m.conflicts, m.errors, m.hintErrors, m.reclaimed, m.reclaimErrors, m.takeovers,
		&stateCollector{
			c:        c,
			gen:      desc("generation", "Generation of the control record.", "model"),
			versions: desc("versions", "Variants in the record, by state.", "model", "state"),
			workers:  desc("workers", "Living workers.", "model"),
			lagging:  desc("workers_lagging", "Living workers that have not acted on the last purge or revocation.", "model"),
			pending:  desc("reclaim_pending", "Dead epochs whose entries are not yet deleted twice.", "model"),
			leader:   desc("leader", "1 if this coordinator leads: it alone reconciles and reclaims."),
			term:     desc("term", "Highest term of leadership seen."),
			tenants:  desc("tenants_purged", "Purges of tenants that the record still remembers.", "model"),
			declared: desc("versions_declared", "Variants whose weights digest is an operator's word.", "model"),
			up:       desc("redis_up", "1 if the last round of reconciliation reached Redis."),
		})
	return m
}

// Collector returns the metrics that GET /metrics serves.
func (c *Coordinator) Collector() prometheus.Collector { return c.metrics.registry }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kvtier_coordinator_"+name, help, labels, nil)
}

// stateCollector reports the state as of the last round: a scrape asks Redis for nothing.
type stateCollector struct {
	c                                            *Coordinator
	gen, versions, workers, lagging, pending, up *prometheus.Desc
	leader, term, tenants, declared              *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.gen, s.versions, s.workers, s.lagging, s.pending, s.up, s.leader, s.term, s.tenants, s.declared} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *stateCollector) Collect(ch chan<- prometheus.Metric) {
	s.c.mu.Lock()
	records := make([]Stored, 0, len(s.c.known))
	for _, r := range s.c.known {
		records = append(records, r)
	}
	beats, up := s.c.beats, s.c.problems[""] == "" && !s.c.lastOK.IsZero()
	lead := s.c.lead
	s.c.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, r := range records {
		st := statusOf(r.Record, r.Sum(), beats)
		declared := 0
		states := map[State]int{Registered: 0, Warming: 0, Active: 0, Draining: 0, Revoked: 0}
		for _, v := range st.Versions {
			states[v.State]++
			if v.Declared {
				declared++
			}
		}
		gauge(s.gen, float64(r.Gen), r.Model)
		for state, n := range states {
			gauge(s.versions, float64(n), r.Model, string(state))
		}
		gauge(s.workers, float64(len(st.Workers)), r.Model)
		gauge(s.lagging, float64(len(st.Invalidation.Lagging)), r.Model)
		gauge(s.pending, float64(len(st.Reclaims)), r.Model)
		gauge(s.tenants, float64(len(r.Tenants)), r.Model)
		gauge(s.declared, float64(declared), r.Model)
	}
	gauge(s.up, oneIf(up))
	gauge(s.leader, oneIf(lead.leads(s.c.opt.Now(), s.c.opt.Leadership)))
	gauge(s.term, float64(max(lead.floor, lead.term)))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
