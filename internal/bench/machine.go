package bench

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine is where figures come from. JSON names are stable.
type Machine struct {
	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`    // of the machine, where it tells; else those this process may run on
	Threads int    `json:"threads"` // that this process may use: GOMAXPROCS
	OS      string `json:"os"`
	Go      string `json:"go"`
	Load    string `json:"load"` // load averages of 1, 5 and 15 minutes at the start, where the system tells
	Version string `json:"version"`
}

// ThisMachine describes the machine this runs on, as far as it tells.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), Threads: runtime.GOMAXPROCS(0), OS: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpus := 0
		for line := range strings.Lines(string(text)) {
			k, v, _ := strings.Cut(line, ":")
			switch strings.TrimSpace(k) {
			case "processor":
				cpus++
			case "model name":
				m.CPU = strings.TrimSpace(v)
			}
		}
		m.CPUs = max(m.CPUs, cpus) // runtime.NumCPU counts those that taskset left to this process
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(text)); len(f) >= 3 {
			m.Load = strings.Join(f[:3], " ")
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		m.Version = info.Main.Version
	}
	return m
}
