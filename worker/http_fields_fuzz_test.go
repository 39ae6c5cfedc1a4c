package worker

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzPrompt holds the prompt's union to a slow reading of the same JSON: what it takes means what it says, and nothing else is taken.
func FuzzPrompt(f *testing.F) {
	for _, s := range []string{`"a"`, `["a"]`, `["a","b,]"]`, `[1,2]`, `[ [1 ] , [2,3]]`, `[[]]`, `[]`, `null`, `[null]`, `["a",1]`, `[1,"a"]`, `[1.0]`, `[-1]`, `[1e1]`, `[0]`, `[-0]`, `{}`, `[{}]`, `"\ud800"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !json.Valid(b) {
			return // encoding/json calls UnmarshalJSON with valid JSON only
		}
		var p prompts
		p = append(p, prompt{text: "left behind"})
		err := json.Unmarshal(b, &p)
		want, ok := slowPrompts(b)
		if (err == nil) != ok {
			t.Fatalf("%s: error %v, want one: %v", b, err, !ok)
		}
		if ok && !reflect.DeepEqual(p, want) {
			t.Fatalf("%s: %v, want %v", b, p, want)
		}
	})
}

// slowPrompts reads what is documented, one form after the other.
func slowPrompts(b []byte) (prompts, bool) {
	var v any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return nil, false
	}
	ids := func(list []any) (prompt, bool) {
		p := prompt{tokens: []int32{}}
		for _, x := range list {
			text, _ := x.(json.Number)
			n, err := text.Int64()
			if err != nil || n < 0 || n > 1<<31-1 {
				return p, false
			}
			p.tokens = append(p.tokens, int32(n))
		}
		return p, true
	}
	switch x := v.(type) {
	case nil:
		return nil, true
	case string:
		return prompts{{text: x}}, true
	case []any:
		if len(x) == 0 {
			return nil, false
		}
		var all prompts
		for _, e := range x {
			switch e := e.(type) {
			case string:
				all = append(all, prompt{text: e})
			case []any:
				p, ok := ids(e)
				if !ok {
					return nil, false
				}
				all = append(all, p)
			default:
				p, ok := ids(x)
				return prompts{p}, ok
			}
			if (all[0].tokens == nil) != (all[len(all)-1].tokens == nil) {
				return nil, false
			}
		}
		return all, true
	}
	return nil, false
}
