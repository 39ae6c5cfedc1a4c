package coordinator

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/kvtier/kvtier/block"
)

// full is the largest record that the limits allow.
func full() Record {
	r := NewRecord(strings.Repeat("m", 64))
	r.Gen, r.Term, r.LastEpoch, r.Cut, r.CutAt = MaxNumber, MaxNumber, MaxNumber, MaxNumber, MaxNumber
	for i := range MaxVariants {
		id := identity(byte(i), 1)
		r.Variants[id.Variant()] = Entry{
			Label: strings.Repeat("l", MaxLabelBytes), Weights: id.Weights, Layout: id.Layout, Declared: true, State: Draining,
			Epoch: MaxNumber, Act: Act{1}, Since: MaxNumber, Gen: MaxNumber,
		}
	}
	r.Tenants = map[block.Digest]TenantCut{}
	for i := range MaxTenants {
		r.Tenants[tenant(i)] = TenantCut{Cut: block.Cut{1}, Gen: MaxNumber, Since: MaxNumber}
	}
	for i := range MaxDead {
		r.Dead = append(r.Dead, Dead{
			Variant: identity(byte(i), 2).Variant(), Epoch: MaxNumber, Gen: MaxNumber, Since: MaxNumber, Swept: MaxNumber,
		})
	}
	return r
}

func TestLargestRecordFits(t *testing.T) {
	raw, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("largest record: %d of %d bytes", len(raw), MaxRecordBytes)
	if _, err := DecodeRecord(full().Model, raw); err != nil {
		t.Errorf("decode: %v", err)
	}
}

func TestRecordIsReadable(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	got := string(stored(t, r).raw)
	id := identity(1, 1)
	want := `{"v":1,"model":"m","gen":1,"term":0,"last_epoch":1772366400000,"variants":{"` + id.Variant().String() +
		`":{"label":"v1","weights":"` + id.Weights.String() + `","layout":"` + id.Layout.String() +
		`","state":"active","epoch":1772366400000,"act":"00000000000000000000000000000001","since":1772366400000,"gen":1}}}`
	if got != want {
		t.Errorf("stored form changed:\n got %s\nwant %s", got, want)
	}
}

// TestDecodeRefuses damages a good record in one place each.
func TestDecodeRefuses(t *testing.T) {
	a := &acts{}
	r := must(t)(NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start)))
	r = must(t)(r.Purge(AllVersions, a.at(start.Add(1))))
	good := string(stored(t, r).raw)
	id := identity(1, 1)
	for name, edit := range map[string]func(string) string{
		"empty":             func(string) string { return "" },
		"not JSON":          func(s string) string { return s[:len(s)/2] },
		"null":              func(string) string { return "null" },
		"trailing bytes":    func(s string) string { return s + "{}" },
		"unknown field":     func(s string) string { return `{"x":1,` + s[1:] },
		"format":            func(s string) string { return strings.Replace(s, `"v":1`, `"v":2`, 1) },
		"other model":       func(s string) string { return strings.Replace(s, `"m"`, `"n"`, 1) },
		"no generation":     func(s string) string { return strings.Replace(s, `"gen":2`, `"gen":0`, 1) },
		"huge generation":   func(s string) string { return strings.Replace(s, `"gen":2`, `"gen":9007199254740993`, 1) },
		"negative":          func(s string) string { return strings.Replace(s, `"gen":2`, `"gen":-2`, 1) },
		"last epoch behind": func(s string) string { return strings.Replace(s, `"last_epoch":1`, `"last_epoch":0`, 1) },
		"weights of others": func(s string) string {
			return strings.Replace(s, id.Weights.String(), identity(2, 1).Weights.String(), 1)
		},
		"short digest": func(s string) string { return strings.Replace(s, id.Layout.String(), "bb", 1) },
		"variant of others": func(s string) string {
			return strings.Replace(s, id.Variant().String(), identity(2, 1).Variant().String(), 1)
		},
		"unknown state":       func(s string) string { return strings.Replace(s, `"active"`, `"live"`, 1) },
		"revoked with epoch":  func(s string) string { return strings.Replace(s, `"active"`, `"revoked"`, 1) },
		"active without act":  func(s string) string { return strings.Replace(s, `"act":"00000000000000000000000000000002",`, "", 1) },
		"label with a quote":  func(s string) string { return strings.Replace(s, `"v1"`, `"v\"1"`, 1) },
		"label too long":      func(s string) string { return strings.Replace(s, `"v1"`, `"`+strings.Repeat("a", 65)+`"`, 1) },
		"live epoch is dead":  func(s string) string { return strings.Replace(s, `"epoch":1772366400001`, `"epoch":1772366400000`, 1) },
		"generation of entry": func(s string) string { return strings.Replace(s, `"gen":2}}`, `"gen":3}}`, 1) },
		"time":                func(s string) string { return strings.Replace(s, `"since":1772366400000`, `"since":-1`, 1) },
		"too long":            func(s string) string { return s + strings.Repeat(" ", MaxRecordBytes) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := edit(good)
			if bad == good {
				t.Fatalf("the test damages nothing: %s", good)
			}
			if r, err := DecodeRecord("m", []byte(bad)); !errors.Is(err, ErrRecord) {
				t.Errorf("got %+v, %v; want ErrRecord", r, err)
			}
		})
	}
	if _, err := DecodeRecord("m", []byte(good)); err != nil {
		t.Errorf("the undamaged record: %v", err)
	}
}

// FuzzDecodeRecord: no panic, and what is accepted is encoded to a form that says the same.
func FuzzDecodeRecord(f *testing.F) {
	a := &acts{}
	r, _ := NewRecord("m").Register(identity(1, 1), "v1", true, a.at(start))
	raw, _ := r.Encode()
	f.Add(raw)
	r, _ = r.Purge(AllVersions, a.at(start))
	r, _ = r.Register(identity(2, 1), "v2", true, a.at(start))
	r, _ = r.Revoke("v1", a.at(start))
	raw, _ = r.Encode()
	f.Add(raw)
	f.Add([]byte(`{"v":1,"model":"m","gen":1,"variants":null}`))
	f.Add([]byte(strings.Repeat("[", 10_000)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := DecodeRecord("m", raw)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatalf("error without sentinel: %v", err)
			}
			return
		}
		once, err := r.Encode()
		if err != nil {
			// Only length may be against it: a valid record in fewer bytes than canonical form needs is impossible.
			t.Fatalf("accepted %q but cannot encode it: %v", raw, err)
		}
		again, err := DecodeRecord("m", once)
		if err != nil {
			t.Fatalf("cannot decode what was encoded: %v", err)
		}
		twice, err := again.Encode()
		if err != nil || string(once) != string(twice) {
			t.Fatalf("encoding is not stable: %s / %s, %v", once, twice, err)
		}
		for _, s := range []string{"v1", "v2", ""} { // a valid record never breaks a transition
			for _, do := range []func() (Record, error){
				func() (Record, error) { return again.Purge(s, a.at(start)) },
				func() (Record, error) { return again.Activate(s, false, a.at(start)) },
				func() (Record, error) { return again.Revoke(s, a.at(start)) },
				func() (Record, error) { return again.Register(identity(9, 9), "v9", true, a.at(start)) },
			} {
				if next, err := do(); err == nil {
					if _, err := next.Encode(); err != nil {
						t.Fatalf("transition broke the record: %v", err)
					}
				}
			}
		}
	})
}

// FuzzHeartbeat: no panic, and what is accepted stays within the limits.
func FuzzHeartbeat(f *testing.F) {
	raw, _ := json.Marshal(Heartbeat{Incarnation: "a", Model: "m", Gen: 3, Sum: "x", State: Leased})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h Heartbeat
		if json.Unmarshal(raw, &h) != nil || h.validate() != nil {
			return
		}
		r := NewRecord("m")
		r.Gen = 1
		found := Stored{Record: r, raw: raw}
		next, _, err := Reconcile(nil, &found, []Heartbeat{h}, Stamp{Now: start, Act: Act{1}})
		if err == nil {
			err = next.Validate()
		}
		if err != nil {
			t.Fatalf("heartbeat %s breaks the record: %v", raw, err)
		}
	})
}

func TestSelectors(t *testing.T) {
	a := &acts{}
	r := NewRecord("m")
	for _, v := range []struct {
		n, l  byte
		label string
	}{{1, 1, "v1"}, {1, 2, "v1"}, {2, 1, "v2"}, {3, 1, "v2"}} {
		r = must(t)(r.Register(identity(v.n, v.l), v.label, false, a.at(start)))
	}
	w1 := identity(1, 1).Weights.String()
	for _, tt := range []struct {
		selector string
		want     int
		err      error
	}{
		{"v1", 2, nil},
		{w1, 2, nil},
		{w1[:8], 2, nil},
		{identity(1, 1).Variant().String(), 1, nil},
		{"v2", 0, ErrAmbiguous},
		{"v3", 0, ErrNoVersion},
		{w1[:7], 0, ErrNoVersion},
		{"", 0, ErrInvalid},
		{strings.Repeat("x", 65), 0, ErrInvalid},
	} {
		got, err := r.match(tt.selector)
		if len(got) != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("match(%q) = %d variants, %v; want %d, %v", tt.selector, len(got), err, tt.want, tt.err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, ok := range []string{"m", "Llama-3.1_8B", strings.Repeat("a", maxNameBytes)} {
		if err := validateName("the id", ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "a:b", "{ctl}", "ä", "a\x00", strings.Repeat("a", maxNameBytes+1)} {
		if validateName("the id", bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
