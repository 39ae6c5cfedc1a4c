package main

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/kvtier/kvtier/internal/bench"
)

const module = "github.com/kvtier/kvtier"

// report is what a run found. JSON names are stable.
type report struct {
	Machine  bench.Machine     `json:"machine"`
	Server   *bench.Server     `json:"server,omitempty"`
	Versions map[string]string `json:"versions"`
	Note     string            `json:"note,omitempty"` // how server and client were placed
	Settings settings          `json:"settings"`
	Get      []row             `json:"get,omitempty"`
	Put      []row             `json:"put,omitempty"`
	Hot      []hotRow          `json:"hot,omitempty"`
}

type settings struct {
	ValueBytes  int     `json:"value_bytes"`
	Connections int     `json:"connections"`
	DataBytes   int64   `json:"data_bytes"`
	Rounds      int     `json:"rounds"`
	Seconds     float64 `json:"seconds_per_slice"`
}

// row is one way to move values.
type row struct {
	Name         string  `json:"name"`
	Library      string  `json:"library"`
	GBps         float64 `json:"gbps"`
	Min          float64 `json:"gbps_min"`
	Max          float64 `json:"gbps_max"`
	OfRaw        float64 `json:"of_raw"` // rate divided by that of the better raw row, the median of the rounds
	KvtierTimes  float64 `json:"kvtier_is_times"`
	KvtierMin    float64 `json:"kvtier_is_times_min"`
	KvtierMax    float64 `json:"kvtier_is_times_max"`
	AllocsPerOp  float64 `json:"allocs_per_op"`
	AllocBytes   float64 `json:"alloc_bytes_per_op"`
	CPUSecondsGB float64 `json:"client_cpu_s_per_gb"`
}

// hotRow is one way to hit in memory.
type hotRow struct {
	Name       string  `json:"name"`
	Library    string  `json:"library"`
	Goroutines int     `json:"goroutines"`
	NsPerHit   float64 `json:"ns_per_hit"`
	Min        float64 `json:"ns_per_hit_min"`
	Max        float64 `json:"ns_per_hit_max"`
	Allocs     float64 `json:"allocs_per_hit"`
	AllocBytes float64 `json:"alloc_bytes_per_hit"`
	Gives      string  `json:"gives"`
}

// rows compares series with the better raw one and with kvtier's verified or sealed one.
func rows(all []bench.Series, library map[string]string, ours int) []row {
	var out []row
	_, raw := bench.Ceiling(all)
	for _, s := range all {
		rate, times := s.Of(bench.Sample.GBps), all[ours].Ratio(s)
		out = append(out, row{Name: s.Name, Library: library[s.Name], GBps: rate.Median, Min: rate.Min, Max: rate.Max,
			OfRaw: s.Ratio(raw).Median, KvtierTimes: times.Median, KvtierMin: times.Min, KvtierMax: times.Max,
			AllocsPerOp: s.Of(bench.Sample.AllocsPerOp).Median, AllocBytes: s.Of(bench.Sample.AllocBytesPerOp).Median,
			CPUSecondsGB: s.Of(bench.Sample.CPUSecondsPerGB).Median})
	}
	return out
}

// versionsOf are those of the modules that are compared, as linked.
func versionsOf() map[string]string {
	out := map[string]string{}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	for _, d := range info.Deps {
		for _, p := range []string{"redis/", "go-redis/", "otter", "ristretto", "golang-lru", "msgpack"} {
			if strings.Contains(d.Path, p) && !strings.Contains(d.Path, "tinylfu") {
				out[d.Path] = d.Version
			}
		}
	}
	return out
}

func (r *report) markdown(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "Machine: %s, %d CPUs, of which this process used %d; %s, %s; load %s at the start.\n", m.CPU, m.CPUs, m.Threads, m.OS, m.Go, m.Load)
	if r.Server != nil {
		fmt.Fprintf(w, "Server: %s %s (%s).", r.Server.Product, r.Server.Version, r.Server.Allocator)
	}
	if r.Note != "" {
		fmt.Fprintf(w, " %s.", r.Note)
	}
	fmt.Fprintf(w, "\n%d rounds of %.1f s for each row; medians, in parentheses the lowest and the highest round.\n", r.Settings.Rounds, r.Settings.Seconds)
	titles := map[string]string{"get": "Reading", "put": "Writing"}
	for _, part := range []struct {
		name string
		rows []row
	}{{"get", r.Get}, {"put", r.Put}} {
		if len(part.rows) == 0 {
			continue
		}
		ours := "get, verified"
		if part.name == "put" {
			ours = "put, sealed"
		}
		fmt.Fprintf(w, "\n%s values of %d KiB over %d connections:\n\n", titles[part.name], r.Settings.ValueBytes>>10, r.Settings.Connections)
		fmt.Fprintf(w, "| %s | GB/s | of raw | kvtier %s is | allocations, bytes | client CPU s/GB |\n|---|---|---|---|---|---|\n", part.name, ours)
		for _, x := range part.rows {
			fmt.Fprintf(w, "| %s%s | %.2f (%.2f–%.2f) | %.2f | %.2f× (%.2f–%.2f) | %.1f, %s | %.3f |\n", x.Name, r.version(x.Library), x.GBps, x.Min, x.Max, x.OfRaw,
				x.KvtierTimes, x.KvtierMin, x.KvtierMax, x.AllocsPerOp, short(x.AllocBytes), x.CPUSecondsGB)
		}
	}
	if len(r.Hot) == 0 {
		return
	}
	fmt.Fprintf(w, "\nHits in memory, %d blocks of %d MiB:\n\n| hit | goroutines | ns | allocations, bytes | the caller holds |\n|---|---|---|---|---|\n", hotBlocks, hotBlockBytes>>20)
	for _, x := range r.Hot {
		fmt.Fprintf(w, "| %s%s | %d | %.0f (%.0f–%.0f) | %.2f, %s | %s |\n", x.Name, r.version(x.Library), x.Goroutines, x.NsPerHit, x.Min, x.Max, x.Allocs, short(x.AllocBytes), x.Gives)
	}
}

func (r *report) version(library string) string {
	if v := r.Versions[library]; v != "" {
		return " (" + v + ")"
	}
	return ""
}

func short(bytes float64) string {
	switch {
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", bytes/(1<<20))
	case bytes >= 10<<10:
		return fmt.Sprintf("%.0f KiB", bytes/(1<<10))
	}
	return fmt.Sprintf("%.0f B", bytes)
}
