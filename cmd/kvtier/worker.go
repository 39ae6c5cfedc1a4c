package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/kvtier/kvtier/block"
	"github.com/kvtier/kvtier/codec"
	"github.com/kvtier/kvtier/coordinator"
	"github.com/kvtier/kvtier/gate"
	"github.com/kvtier/kvtier/internal/httpapi"
	"github.com/kvtier/kvtier/store/redisstore"
	"github.com/kvtier/kvtier/tiered"
	"github.com/kvtier/kvtier/worker"
	"github.com/kvtier/kvtier/worker/llama"
)

// drainTimeout is how long a worker that was told to stop may take to end requests, and then to store what is queued, unless it is told otherwise.
const drainTimeout = 10 * time.Second

type workerFlags struct {
	listenFlags
	engineFlags
	node             nodeOptions
	checkpoints      []string
	checkpointDir    string
	coordinatorURL   string
	coordinatorToken string
	secret           string
	onExpiry         string
	writePolicy      string
	gate             string
	blockTokens      int
	kvQuant          string
	encoding         string
	hot              hotSize
	spill            byteSize
	sequenceBytes    byteSize
	chatTemplate     string
	drain            time.Duration
}

func newWorker() *cobra.Command {
	f := workerFlags{hot: hotSize{256 << 20}, spill: 64 << 20}
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Serve completions, with K/V shared through Redis",
		Long: `worker loads a model and answers POST /v1/completions and /v1/chat/completions as OpenAI's API does (docs/API.md, /openapi.yaml). K/V of prompt prefixes is kept in memory and, with --redis, shared with other workers.

With --coordinator it registers its checkpoints, serves whichever the coordinator activates, and shares entries only under a lease on
their epoch. Without, it stands alone: entries are still told apart by weights, but nothing can be purged.
Redis and the coordinator may come and go: requests are answered all the same.`,
		Example: `  kvtier worker                                          # the shipped model, no Redis
  kvtier worker --redis redis://127.0.0.1:6379 --coordinator http://127.0.0.1:8090
  kvtier worker --redis rediss://cache.example:6380 --encoding planes   # a slow link: fewer bytes, the same bits
  kvtier worker --redis redis://127.0.0.1:6379 --kv-quant int8          # half the bytes, lossy; shares with its like only
  kvtier worker --redis redis://primary:6379 --redis-replica replica:6379 --redis-hedge 50ms
  kvtier worker --checkpoint new.gguf --checkpoint old.gguf --model mine --redis redis://127.0.0.1:6379
  kvtier worker --engine llamacpp --llama-url http://127.0.0.1:8000 --slots-dir /dev/shm/slots --checkpoint mine.gguf --redis redis://127.0.0.1:6379`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.node.hotBytes, f.node.spillBytes = f.hot.unless(cmd.Flags(), "hot-bytes"), f.spill.unless(cmd.Flags(), "spill-bytes")
			return f.run(cmd.Context())
		},
	}
	f.listenFlags.add(cmd, "127.0.0.1:8080")
	f.engineFlags.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.node.model, "model", "shakespeare", "`name` under which clients and the coordinator know the model")
	fl.StringSliceVar(&f.checkpoints, "checkpoint", nil, "GGUF `file`, or directory of a Hugging Face checkpoint, that can be served; repeat for more, the first is loaded (default: the shipped models)")
	fl.StringVar(&f.checkpointDir, "checkpoint-dir", "", "`directory` whose .gguf files may be loaded while the worker runs: kvtier model load")
	fl.IntVar(&f.blockTokens, "block-tokens", 0, "tokens per cached block; workers share only at equal size (default 16)")
	fl.StringVar(&f.kvQuant, "kv-quant", "none", "how K/V is cached: none, or int8: half the bytes, lossy, output is then not token-identical; workers share only at equal settings")
	fl.StringVar(&f.node.redis, "redis", "", "`URL` of the shared tier: redis://, rediss://, unix://, redis+cluster://, redis+sentinel://")
	fl.DurationVar(&f.node.hedge, "redis-hedge", 0, "ask a replica as well when a read of K/V has gone unanswered for so long, once in 20 reads at most; a few times what a "+
		"large value takes (default 0: never)")
	fl.StringSliceVar(&f.node.replicas, "redis-replica", nil, "`host:port` of a replica of --redis, for --redis-hedge; repeat for more; clusters and sentinels know theirs")
	fl.StringVar(&f.node.controlRedis, "control-redis", "", "`URL` of the server with the control records (default: --redis)")
	fl.StringVar(&f.coordinatorURL, "coordinator", "", "`URL` of the coordinator")
	fl.StringVar(&f.coordinatorToken, "coordinator-token", "", "bearer token of the coordinator")
	fl.StringVar(&f.node.address, "advertise", "", "`address` under which others reach this worker, for status (default: --listen)")
	fl.StringVar(&f.secret, "secret", "", "cluster secret that keys the prompt hashes; the same for all workers")
	fl.Var(&f.hot, "hot-bytes", "bound of the hot tier, or none; unless set, at least 8 blocks of the model")
	fl.Var(&f.spill, "spill-bytes", "bound of what waits to be stored; unless set, at least 4 blocks of the model")
	fl.DurationVar(&f.node.ttl, "ttl", 6*time.Hour, "how long stored entries live")
	fl.DurationVar(&f.node.fetchTimeout, "fetch-timeout", time.Second, "how long a request may wait for remote blocks")
	fl.StringVar(&f.gate, "gate", "auto", "blocks that only Redis has: auto (load or compute, whichever is measured to be faster, or both), always (load) or never")
	fl.StringVar(&f.encoding, "encoding", "raw", "how K/V is stored: raw, or planes: lossless, two thirds of the bytes, used while the measured link is slow enough for it to pay")
	fl.StringVar(&f.writePolicy, "write-policy", "through", "when computed blocks are stored: through (at once), evict (when they leave the hot tier) or "+
		"second-hit (when this worker meets them again; for a shared tier too small for all)")
	fl.BoolVar(&f.node.fillLease, "fill-lease", true, "claim prefixes that are being computed, so that other workers that miss them at the same time may wait")
	fl.StringVar(&f.onExpiry, "on-expiry", "local", "without a lease: local (go on with this worker's own entries) or strict (use none)")
	fl.IntVar(&f.node.sequences, "sequences", 0, "sequences that run at once; a request with n choices has n (default: 16 with the built-in engine, the slots of llama-server)")
	fl.IntVar(&f.node.queue, "queue", 64, "requests that may wait for their turn; more get 429 and Retry-After")
	fl.Var(&f.sequenceBytes, "sequence-bytes", "bound of K and V of running requests, prompt and answer (default: what 4 sequences of the context come to, or more of them up to 1 GiB; with --sequences, all of those)")
	fl.DurationVar(&f.drain, "drain-timeout", drainTimeout, "how long requests may go on after SIGTERM, and stores after that")
	fl.StringVar(&f.chatTemplate, "chat-template", "", "how /v1/chat/completions makes a prompt: plain, or a `file` with a Jinja template (default: the model's own, or plain)")
	return cmd
}

func (f *workerFlags) run(ctx context.Context) (err error) {
	if err := httpapi.ValidateListen(f.listen, f.token, f.insecure); err != nil {
		return usageError{err}
	}
	log := f.logger()
	o := f.node
	o.logger, o.secret = log, []byte(f.secret)
	if o.onExpiry, err = coordinator.ParseOnExpiry(f.onExpiry); err != nil {
		return usageError{err}
	}
	if o.writePolicy, err = tiered.ParseWritePolicy(f.writePolicy); err != nil {
		return usageError{err}
	}
	if o.gate, err = gate.ParseMode(f.gate); err != nil {
		return usageError{err}
	}
	if o.encoding, err = codec.ParseEncoding(f.encoding); err != nil {
		return usagef("--encoding: %w", err)
	}
	kvQuant, err := block.ParseQuant(f.kvQuant)
	if err != nil {
		return usagef("--kv-quant: %w", err)
	}
	if o.redis == "" && (o.hedge != 0 || len(o.replicas) > 0) {
		return usagef("--redis-hedge and --redis-replica need --redis")
	}
	if f.coordinatorURL != "" {
		if o.redis == "" && o.controlRedis == "" {
			return usagef("--coordinator needs --redis or --control-redis: the control records are there")
		}
		o.coordinator, err = coordinator.NewClient(coordinator.ClientOptions{URL: f.coordinatorURL, Token: f.coordinatorToken})
		if err != nil {
			return usageError{err}
		}
		defer o.coordinator.Close()
	}
	if o.address == "" {
		host, _ := os.Hostname()
		o.address = advertised(f.listen, host)
	}
	lo := llama.Options{BlockTokens: f.blockTokens}
	if o.checkpoints, err = f.sources(lo, log); err != nil {
		return err
	}
	if kvQuant != block.QuantNone && o.encoding != codec.Raw {
		return usagef("--encoding %v and --kv-quant %v exclude each other: bytes do not get smaller that way", o.encoding, kvQuant)
	}
	o.checkpoints = quantised(o.checkpoints, kvQuant)

	if o.sequenceBytes = int64(f.sequenceBytes); o.queue == 0 {
		o.queue = -1 // none; 0 is the default of worker.Options
	} else if o.queue < 0 {
		return usagef("--queue is %d, want 0 or more", o.queue)
	}
	template, err := readChatTemplate(f.chatTemplate)
	if err != nil {
		return usagef("--chat-template: %w", err)
	}

	n, err := startNode(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), f.drain)
		defer cancel()
		err = errors.Join(err, n.Close(ctx))
		log.Info("stopped")
	}()
	settings := watchSettings(log, servers(o.redis, o.controlRedis, true))
	defer settings.Close()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return usagef("--listen: %w", err)
	}
	e, label := n.replica.Resident()
	log.Info("serving", "listen", ln.Addr().String(), "model", o.model, "label", label, "variant", e.Identity().Variant(),
		"redis", redisstore.Redact(o.redis), "block_tokens", e.Layout().BlockTokens, "kv_quant", kvQuant)
	registry := prometheus.NewRegistry()
	registerNode(registry, n, o.model)
	registerEngine(registry, e)
	h := worker.HandlerOptions{Model: o.model, Token: f.token, Degraded: func() []string { return append(n.degraded(), settings.problems()...) }, Registry: registry,
		ChatTemplate: template}
	if f.engine == engineBuiltin {
		h.Load = func(ctx context.Context, name string) (worker.Loaded, error) {
			return n.load(ctx, loader{given: o.checkpoints, dir: f.checkpointDir, opts: lo, quant: kvQuant}, o, name)
		}
	}
	defer context.AfterFunc(ctx, func() { // whoever waits is told at once, and may ask another worker
		log.Info("draining", "timeout", f.drain)
		n.replica.Drain()
	})()
	return httpapi.Serve(ctx, ln, worker.Handler(n.replica, h), f.drain)
}

// readChatTemplate returns what --chat-template names.
func readChatTemplate(name string) (string, error) {
	if name == "" || name == worker.PlainTemplate {
		return name, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	return string(b), worker.CheckTemplate(string(b))
}

// advertised replaces a listen address that means every interface by the name of this host.
func advertised(listen, host string) string {
	h, port, err := net.SplitHostPort(listen)
	if ip, ipErr := netip.ParseAddr(h); err == nil && host != "" && (h == "" || ipErr == nil && ip.IsUnspecified()) {
		return net.JoinHostPort(host, port)
	}
	return listen
}

// registerNode exports what only the wiring knows: version, breaker and lease.
func registerNode(r prometheus.Registerer, n *node, model string) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	gauge("kvtier_build_info", "The value is 1.", prometheus.Labels{"version": version}, func() float64 { return 1 })
	if n.breaker != nil {
		gauge("kvtier_breaker_state", "What the breaker in front of the remote tier does: 0 closed, 1 open, 2 half-open.", nil,
			func() float64 { return float64(n.breaker.State()) })
	}
	if n.redis != nil {
		r.MustRegister(nodeBreakers{n.redis}, hedges{n.redis})
	}
	if n.watch != nil {
		labels := prometheus.Labels{"model": model}
		gauge("kvtier_generation", "Generation of the control record that this worker has adopted, 0 for none.", labels,
			func() float64 { return float64(n.watch.View().Gen) })
		gauge("kvtier_lease_remaining_seconds", "How long the control record may still be trusted; 0 when it may not.", labels,
			func() float64 { return max(0, time.Until(n.watch.View().LeaseUntil).Seconds()) })
	}
}

// nodeBreakers exports the state of the breaker of each node of a cluster, and of each server if reads are hedged.
type nodeBreakers struct{ redis *redisstore.Store }

var descNodeBreaker = prometheus.NewDesc("kvtier_node_breaker_state", "What the breaker of one node of a cluster, or of one server with --redis-hedge, does: 0 closed, 1 open, 2 half-open.", []string{"node"}, nil)

// Describe implements prometheus.Collector.
func (nodeBreakers) Describe(ch chan<- *prometheus.Desc) { ch <- descNodeBreaker }

// Collect implements prometheus.Collector.
func (b nodeBreakers) Collect(ch chan<- prometheus.Metric) {
	for _, s := range b.redis.NodeStates() {
		ch <- prometheus.MustNewConstMetric(descNodeBreaker, prometheus.GaugeValue, float64(s.State), s.Node)
	}
}

// hedges exports how many reads a replica was asked too.
type hedges struct{ redis *redisstore.Store }

var descHedges = prometheus.NewDesc("kvtier_hedged_reads_total", "Reads of the remote tier that went to a replica too: sent, and of those won by the replica.", []string{"outcome"}, nil)

// Describe implements prometheus.Collector.
func (hedges) Describe(ch chan<- *prometheus.Desc) { ch <- descHedges }

// Collect implements prometheus.Collector.
func (h hedges) Collect(ch chan<- prometheus.Metric) {
	n := h.redis.Hedges()
	ch <- prometheus.MustNewConstMetric(descHedges, prometheus.CounterValue, float64(n.Sent), "sent")
	ch <- prometheus.MustNewConstMetric(descHedges, prometheus.CounterValue, float64(n.Won), "won")
}
