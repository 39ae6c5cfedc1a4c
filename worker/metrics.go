package worker

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvtier/kvtier/tiered"
)

// metrics counts requests and exports the cache's own counts. Labels are bounded: tiers, reasons and outcomes are fixed sets.
type metrics struct {
	requests *prometheus.CounterVec
	ttft     *prometheus.HistogramVec
	perToken *prometheus.HistogramVec
	waited   prometheus.Histogram
	tokens   *prometheus.CounterVec
	answers  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Replica) *metrics {
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, labels)
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvtier_requests_total", Help: "Completion requests by outcome: ok, refused, busy, timeout, cancelled or error.",
		}, []string{"outcome"}),
		ttft: histogram("kvtier_time_to_first_token_seconds",
			"Time from request to first token, by the farthest tier that served a part of the prompt, and by outcome.", "source", "outcome"),
		perToken: histogram("kvtier_time_per_output_token_seconds", "Time from the first token to the last, divided by the tokens of all choices after the first, by outcome.", "outcome"),
		waited: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kvtier_queue_wait_seconds", Help: "Time that requests waited for their turn.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvtier_prompt_tokens_total", Help: "Prompt tokens by where their K/V came from: hot, remote or computed.",
		}, []string{"source"}),
		answers: prometheus.NewCounter(prometheus.CounterOpts{Name: "kvtier_generated_tokens_total", Help: "Generated tokens."}),
	}
	reg.MustRegister(m.requests, m.ttft, m.perToken, m.waited, m.tokens, m.answers, cacheCollector{r})
	return m
}

// answered counts a request; res says how far it came.
func (m *metrics) answered(res Result, err error) {
	outcome := outcome(err)
	m.requests.WithLabelValues(outcome).Inc()
	if res.TTFT == 0 {
		return
	}
	source := "computed"
	switch {
	case res.RemoteTokens > 0:
		source = "remote"
	case res.HotTokens > 0:
		source = "hot"
	}
	m.ttft.WithLabelValues(source, outcome).Observe(res.TTFT.Seconds())
	m.waited.Observe(res.Waited.Seconds())
	m.tokens.WithLabelValues("hot").Add(float64(res.HotTokens))
	m.tokens.WithLabelValues("remote").Add(float64(res.RemoteTokens))
	m.tokens.WithLabelValues("computed").Add(float64(res.ComputedTokens))
	n := res.GeneratedTokens()
	m.answers.Add(float64(n))
	if n > 1 {
		m.perToken.WithLabelValues(outcome).Observe((res.Total - res.TTFT).Seconds() / float64(n-1))
	}
}

// cacheCollector reads a snapshot of the cache at every scrape, so that counting costs requests nothing twice.
type cacheCollector struct{ r *Replica }

var (
	descLookup      = desc("kvtier_lookup_tokens_total", "Prompt tokens in full blocks that the cache was asked for.")
	descHits        = desc("kvtier_hit_tokens_total", "Prompt tokens served, by tier.", "tier")
	descMisses      = desc("kvtier_miss_tokens_total", "Prompt tokens in full blocks that were not served, by reason.", "reason")
	descBytes       = desc("kvtier_tier_bytes", "Bytes of blocks held in this process.", "tier")
	descMaxBytes    = desc("kvtier_tier_max_bytes", "Bound of kvtier_tier_bytes.", "tier")
	descEvicted     = desc("kvtier_evictions_total", "Blocks that left the hot tier, by reason.", "reason")
	descSpillBytes  = desc("kvtier_spill_queue_bytes", "Bytes waiting to be stored.")
	descSpilled     = desc("kvtier_spilled_blocks_total", "Blocks stored in the remote tier.")
	descSpillDrops  = desc("kvtier_spill_dropped_total", "Blocks given up before they were stored, by reason.", "reason")
	descSpillSkips  = desc("kvtier_spill_skipped_blocks_total", "Blocks not stored because the remote tier had them.")
	descFillClaims  = desc("kvtier_fill_claims_total", "Claims on blocks being computed: made here, watched because another worker had them, and watched with success.", "outcome")
	descFillBytes   = desc("kvtier_fill_bytes", "Bytes being fetched.")
	descBadValues   = desc("kvtier_integrity_failures_total", "Stored values that failed their checks and were deleted.")
	descAccess      = desc("kvtier_cache_access", "What the cache may use: 0 nothing, 1 the hot tier, 2 the remote tier too.")
	descEpoch       = desc("kvtier_epoch", "Epoch of the resident variant, 0 without one.")
	descTenantBytes = desc("kvtier_tenant_bytes", "Bytes by tenant: hot is held now, stored was written since the start. Only the largest tenants are named.", "namespace", "what")
	descQueue       = desc("kvtier_queue_requests", "Requests that wait for their turn, by priority.", "priority")
	descRunning     = desc("kvtier_running_sequences", "Sequences that have their turn, by priority.", "priority")
	descSeqBytes    = desc("kvtier_sequence_bytes", "Bytes that K and V of running requests may come to, prompt and answer; with kvtier_tier_bytes of the hot tier what K/V takes in this process.")
	descSeqMaxBytes = desc("kvtier_sequence_max_bytes", "Bound of kvtier_sequence_bytes, 0 for what the bound of sequences amounts to.")
	descWeightsInfo = desc("kvtier_resident_info", "Resident weights; the value is 1.", "label", "variant", "declared")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

func (c cacheCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c cacheCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.r.opts.Cache.Stats()
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	perBlock := int64(s.BlockTokens)
	counter(descLookup, s.LookupBlocks*perBlock)
	for tier, n := range s.HitBlocks {
		counter(descHits, n*perBlock, tier)
	}
	for reason, n := range s.MissBlocks {
		counter(descMisses, n*perBlock, reason)
	}
	gauge(descBytes, float64(s.HotBytes), tiered.Hot.String())
	gauge(descMaxBytes, float64(s.HotMaxBytes), tiered.Hot.String())
	counter(descEvicted, s.Evicted, "evicted")
	counter(descEvicted, s.Invalidated, "invalidated")
	gauge(descSpillBytes, float64(s.SpillBytes))
	counter(descSpilled, s.Spilled)
	counter(descSpillSkips, s.SpillSkipped)
	for outcome, n := range map[string]int64{"made": s.FillClaims, "watched": s.FillWatched, "found": s.FillFound} {
		counter(descFillClaims, n, outcome)
	}
	for reason, n := range s.SpillDropped {
		counter(descSpillDrops, n, reason)
	}
	gauge(descFillBytes, float64(s.FillingBytes))
	counter(descBadValues, s.BadValues)
	q := c.r.queue.stats()
	for p, name := range [...]string{Serving: "serving", Background: "background"} {
		gauge(descQueue, float64(q.waiting[p]), name)
		gauge(descRunning, float64(q.running[p]), name)
	}
	gauge(descSeqBytes, float64(q.bytes))
	gauge(descSeqMaxBytes, float64(c.r.opts.MaxSequenceBytes))
	v := c.r.opts.Cache.View()
	gauge(descAccess, float64(v.Access))
	gauge(descEpoch, float64(v.Epoch))
	e, label := c.r.Resident()
	declared := false
	if g := c.r.opts.Grants; g != nil {
		known, _ := g.View().Version(e.Identity().Variant())
		declared = known.Declared
	}
	gauge(descWeightsInfo, 1, label, e.Identity().Variant().String(), strconv.FormatBool(declared))
	for _, t := range s.Tenants {
		name := t.Namespace.Short()
		if t.Namespace.IsZero() {
			name = "other"
		}
		gauge(descTenantBytes, float64(t.HotBytes), name, "hot")
		gauge(descTenantBytes, float64(t.StoredBytes), name, "stored")
	}
}
