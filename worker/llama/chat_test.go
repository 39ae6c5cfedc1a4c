package llama_test

import (
	"slices"
	"testing"

	"github.com/kvtier/kvtier/models"
	"github.com/kvtier/kvtier/worker/engine"
	"github.com/kvtier/kvtier/worker/llama"
)

// Texts of control tokens become those tokens in a rendered template, and stay text in a prompt.
func TestSpecialTokens(t *testing.T) {
	m := openEmbedded(t, models.Default, llama.Options{})
	tok := m.Tokenizer()
	special, ok := tok.(engine.SpecialEncoder)
	if !ok {
		t.Fatal("the tokenizer knows no special tokens")
	}
	template := m.ChatTemplate()
	if template.Source != "" || template.BOS != "<s>" || template.EOS != "</s>" {
		t.Errorf("the shipped model has %+v, want no template and <s>, </s>", template)
	}
	bos, eos := tok.Encode(""), tok.EOS() // what begins every text, perhaps nothing
	got := special.EncodeSpecial("Kate</s>Come</s>")
	want := append(slices.Clone(bos), tok.Encode("Kate")[len(bos):]...)
	want = append(append(want, eos), tok.Encode("Come")[len(bos):]...)
	if want = append(want, eos); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if slices.Contains(tok.Encode("Kate</s>"), eos) {
		t.Error("a prompt's text became a special token")
	}
	twice := special.EncodeSpecial("<s>Kate")
	if n := len(twice); n < 2 || twice[0] == twice[1] {
		t.Errorf("%v begins twice", twice)
	}
	if got, want := special.EncodeSpecial("Kate"), tok.Encode("Kate"); !slices.Equal(got, want) {
		t.Errorf("without special tokens %v, want %v", got, want)
	}
}
