package gate_test

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/gate"
)

var update = flag.Bool("update", false, "write what the transcripts say")

// TestTranscripts replays testdata/decisions.txt: a line that begins with a word is a question, with what was measured, and the line behind
// it that begins with > is the answer. Blocks have 16 tokens of 2 KiB.
func TestTranscripts(t *testing.T) {
	const file = "testdata/decisions.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, ">") {
			continue
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		answer, err := replay(strings.Fields(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		fmt.Fprintln(&out, "> "+answer)
	}
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, want := strings.Split(out.String(), "\n"), strings.Split(string(text), "\n")
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s:%d: the transcript differs; look at it with -update and git diff", file, i+1)
		}
	}
}

// replay answers one question. Durations of a link are for all that there is to get; those of an engine for a token.
func replay(words []string) (string, error) {
	v := map[string]time.Duration{}
	n := map[string]int{"end": 1600}
	for _, w := range words[1:] {
		name, value, _ := strings.Cut(w, "=")
		if i, err := strconv.Atoi(value); err == nil && (name == "at" || name == "end") {
			n[name] = i
			continue
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return "", err
		}
		v[name] = d
	}
	w := gate.Work{At: n["at"], End: n["end"], Block: 16, TokenBytes: 2048}
	path := gate.Path{RTT: v["rtt"].Seconds()}
	if w.End > 0 {
		path.Byte = v["load"].Seconds() / (1600 * 2048)
	}
	pre := gate.Prefill{Token: v["token"].Seconds(), Position: v["position"].Seconds()}
	ms := func(s float64) string { return fmt.Sprintf("%.1f ms", s*1e3) }
	switch words[0] {
	case "ask":
		ask, wait := gate.Ask(path, pre, w, 100*time.Millisecond)
		switch {
		case !ask:
			return "do not ask", nil
		case wait == 0:
			return "ask, and compute meanwhile", nil
		}
		return fmt.Sprintf("ask, and wait for %v", wait.Round(10*time.Microsecond)), nil
	case "decide":
		p := gate.Decide(path, pre, w)
		s := fmt.Sprintf("%v, meeting at %d", p.Choice, p.Meet)
		if p.Compute > 0 && p.Load > 0 {
			s += fmt.Sprintf(": load %s, compute %s, both %s; give up after %v", ms(p.Load), ms(p.Compute), ms(p.Both),
				p.Deadline(time.Second).Round(time.Millisecond))
		}
		return s, nil
	case "claim":
		c := gate.Claim{Compute: v["compute"], Load: v["load"], RTT: v["rtt"]}
		if !c.Pays() {
			return "compute, and claim nothing", nil
		}
		return fmt.Sprintf("claim; done in %v", c.Expected()), nil
	case "await":
		c := gate.Claim{Compute: v["compute"], Load: v["load"], RTT: v["rtt"]}
		idle, until, ok := c.Await(v["expected"], v["age"])
		if !ok {
			return "compute", nil
		}
		return fmt.Sprintf("wait for %v, look out until %v", idle, until), nil
	}
	return "", fmt.Errorf("unknown question %q", words[0])
}
