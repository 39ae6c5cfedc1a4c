package bench

import (
	"context"
	"errors"
	"time"
)

// RemoteOptions say what Remote measures. Zero means the default.
type RemoteOptions struct {
	ValueBytes  []int         // payload of a block; default 2 MiB
	Connections []int         // of ours and of raw; default 6, as a worker has
	DataBytes   int64         // values on the server at any time, at most; default 256 MiB
	Duration    time.Duration // of each pair of value size and connections; default 15 s
	Seed        string        // part of the keys; the caller makes it unique
	Step        func()        // called after each slice
}

func (o RemoteOptions) withDefaults() RemoteOptions {
	if len(o.ValueBytes) == 0 {
		o.ValueBytes = []int{2 << 20}
	}
	if len(o.Connections) == 0 {
		o.Connections = []int{6}
	}
	if o.DataBytes == 0 {
		o.DataBytes = 256 << 20
	}
	if o.Duration == 0 {
		o.Duration = 15 * time.Second
	}
	if o.Step == nil {
		o.Step = func() {}
	}
	return o
}

// methods is how many are measured for each pair of value size and connections: four ways to get, four to put.
const remoteMethods = 8

func (o RemoteOptions) plan() Plan { return PlanFor(o.Duration, remoteMethods) }

// Slices is how often Step will be called.
func (o RemoteOptions) Slices() int {
	o = o.withDefaults()
	return len(o.ValueBytes) * len(o.Connections) * (remoteMethods*o.plan().Rounds + 1)
}

// RemoteRow compares one operation with the raw ceiling: hand-written RESP over the same kind of connections, one or two requests in flight
// on each, whichever is faster, into reused buffers. Figures are medians of rounds that take turns. JSON names are stable.
type RemoteRow struct {
	Op             string  `json:"op"` // get: bytes as stored; get_verified: header and checksum checked; put: sealed, then stored; put_sealed: stored only
	ValueBytes     int     `json:"value_bytes"`
	Connections    int     `json:"connections"`
	GBps           float64 `json:"gbps"`
	GBpsMin        float64 `json:"gbps_min"`
	GBpsMax        float64 `json:"gbps_max"`
	RawGBps        float64 `json:"raw_gbps"`
	RawGBpsMin     float64 `json:"raw_gbps_min"`
	RawGBpsMax     float64 `json:"raw_gbps_max"`
	Ratio          float64 `json:"ratio"`
	RatioMin       float64 `json:"ratio_min"`
	RatioMax       float64 `json:"ratio_max"`
	AllocsPerOp    float64 `json:"allocs_per_op"` // an operation is one part of at most 4 MiB
	AllocBytes     float64 `json:"alloc_bytes_per_op"`
	CPUSecondsGB   float64 `json:"client_cpu_s_per_gb"`
	RawCPUSecondGB float64 `json:"raw_client_cpu_s_per_gb"`
	RawInFlight    int     `json:"raw_in_flight"` // on each connection, of the faster one
	Parts          int     `json:"parts"`         // of a value
	Rounds         int     `json:"rounds"`
}

// ProbeResult is one longest-prefix probe, next to the same EXISTS commands in one hand-written pipeline. JSON names are stable.
type ProbeResult struct {
	Blocks int     `json:"blocks"`
	Ms     float64 `json:"ms"`
	RawMs  float64 `json:"raw_ms"`
	Ratio  float64 `json:"ratio"` // of times: above 1 is slower than raw
}

// RemoteReport is the result of Remote. JSON names are stable.
type RemoteReport struct {
	Server Server      `json:"server"`
	Remote []RemoteRow `json:"remote"`
	Probe  ProbeResult `json:"probe"`
}

// Remote measures redisstore against url and the raw ceiling in the same rounds. What it writes has a TTL and is deleted at the end, also
// when ctx ends early. Errors that the caller can mend: ErrOneServer, ErrNoRoom, ErrValueBytes.
func Remote(ctx context.Context, url string, o RemoteOptions) (RemoteReport, error) {
	o = o.withDefaults()
	for _, v := range o.ValueBytes {
		if _, err := LayoutOf(v); err != nil {
			return RemoteReport{}, err
		}
	}
	server, err := OpenServer(ctx, url)
	if err != nil {
		return RemoteReport{}, err
	}
	report := RemoteReport{Server: *server, Remote: []RemoteRow{}}
	if err := server.Room(o.DataBytes); err != nil {
		return report, err
	}
	for _, conns := range o.Connections {
		for _, v := range o.ValueBytes {
			rows, err := o.pair(ctx, server, v, conns)
			if err != nil {
				return report, err
			}
			report.Remote = append(report.Remote, rows...)
		}
	}
	report.Probe, err = probe(ctx, server, o)
	return report, err
}

// pair measures one value size over a number of connections. Gets and puts are separate rounds on the same keys: a put beside a get would
// change what the get finds.
func (o RemoteOptions) pair(ctx context.Context, server *Server, valueBytes, conns int) (_ []RemoteRow, err error) {
	t, err := OpenTraffic(ctx, server, conns, valueBytes, o.DataBytes, o.Seed)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close(ctx)) }()
	o.Step()
	plan := o.plan()
	gets, err := Rounds(ctx, plan, t.Gets(), o.Step)
	if err != nil {
		return nil, err
	}
	puts, err := Rounds(ctx, plan, t.Puts(), o.Step)
	if err != nil {
		return nil, err
	}
	var rows []RemoteRow
	for _, x := range []struct {
		ours Series
		all  []Series
	}{{gets[2], gets}, {gets[3], gets}, {puts[2], puts}, {puts[3], puts}} {
		inFlight, raw := Ceiling(x.all)
		rate, ceiling, ratio := x.ours.Of(Sample.GBps), raw.Of(Sample.GBps), x.ours.Ratio(raw)
		rows = append(rows, RemoteRow{
			Op: x.ours.Name, ValueBytes: valueBytes, Connections: conns, RawInFlight: inFlight, Parts: t.parts, Rounds: plan.Rounds,
			GBps: rate.Median, GBpsMin: rate.Min, GBpsMax: rate.Max,
			RawGBps: ceiling.Median, RawGBpsMin: ceiling.Min, RawGBpsMax: ceiling.Max,
			Ratio: ratio.Median, RatioMin: ratio.Min, RatioMax: ratio.Max,
			AllocsPerOp:    x.ours.Of(Sample.AllocsPerOp).Median,
			AllocBytes:     x.ours.Of(Sample.AllocBytesPerOp).Median,
			CPUSecondsGB:   x.ours.Of(Sample.CPUSecondsPerGB).Median,
			RawCPUSecondGB: raw.Of(Sample.CPUSecondsPerGB).Median,
		})
	}
	return rows, nil
}
