package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/kvtier/kvtier/worker/engine"
)

// Templates as models ship them, or with the same means, and what their models were trained on.
var templatesInUse = []struct{ name, source, want string }{
	{"none", "", "SYSTEM:\nBe brief.\n\nUSER:\nHi\n\nASSISTANT:\nHello.\n\nUSER:\nBye\n\nASSISTANT:\n"},
	{"ChatML", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
		"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"},
	{"Llama 2", "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}" +
		"{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}" +
		"{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}" +
		"{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
		"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"},
	{"Llama 3", "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}" +
		"{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
		"<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>" +
			"<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
	{"white space", "{%- for message in messages %}\n    {%- if message.role == 'system' %}\n        {{- '[' ~ message.content ~ ']\\n' }}\n    {%- else %}\n        {{- message.role[0] | upper + ': ' + message.content + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- 'A:' }}\n{%- endif %}\n",
		"[Be brief.]\nU: Hi\nA: Hello.\nU: Bye\nA:"},
	{"line ends", "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n  {# said #}\n{% endfor %}\n \n", "system\nBe brief.\nuser\nHi\nassistant\nHello.\nuser\nBye\n "},
	{"marks", "  {%+ if true +%}\na{% endif -%} \n b {{- ' c' -}}\n\"{% raw %}{{ x }}\n{% endraw %}\\", "  \nab c\"{{ x }}\n\\"},
	{"macro", "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}", "<system>Be brief.<user>Hi<assistant>Hello.<user>Bye"},
	{"filtered loop", "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.content }} {% endfor %}{% for i in range(2, 0, -1) %}{{ i }}{% endfor %}", "1Hi 2Hello. 3Bye 21"},
}

var conversation = []message{{Role: "system", Content: content{text: "Be brief.", set: true}}, {Role: "user", Content: content{text: "Hi", set: true}}, {Role: "assistant", Content: content{text: "Hello.", set: true}}, {Role: "user", Content: content{text: "Bye", set: true}}}

func TestChatTemplates(t *testing.T) {
	for _, c := range templatesInUse {
		got, markup, err := newChatTemplate(engine.ChatTemplate{Source: c.source, BOS: "<s>", EOS: "</s>"}).render(conversation)
		if err != nil || got != c.want || markup != (c.source != "") {
			t.Errorf("%s: %v, markup %v\n%q, want\n%q", c.name, err, markup, got, c.want)
		}
	}
	named := []message{{Role: "user", Name: "Katharina", Content: content{text: "Hi", set: true}}}
	if got := plainTemplate(named); got != "KATHARINA:\nHi\n\nASSISTANT:\n" {
		t.Errorf("%q", got)
	}
}

// A template that cannot be used says why, and one that would not end is ended.
func TestHostileTemplates(t *testing.T) {
	for name, c := range map[string]struct{ source, want string }{
		"broken":         {"{% for %}", "cannot be used"},
		"unclosed":       {"{{ messages", "cannot be used"},
		"unknown filter": {"{{ messages | nonsense }}", "nonsense"},
		"refuses":        {"{{ raise_exception('no system turn') }}", "no system turn"},
		"long":           {strings.Repeat("a", maxTemplateBytes+1), "bytes"},
		"huge range":     {"{% for i in range(1000000000000) %}{% endfor %}", "steps"},
		"downwards":      {"{% for i in range(0, -1000000000000, -1) %}{% endfor %}", "steps"},
		"no step":        {"{% for i in range(0, 5, 0) %}{% endfor %}", "step"},
		"text in range":  {"{% for i in range('a') %}{% endfor %}", "whole numbers"},
		"nested loops":   {"{% for a in range(9999) -%}{% for b in range(9999) %}{%- for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}", "steps"},
		"recursion":      {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f('%}') }}", "steps"},
		"two macros":     {"{%- macro f(x='%}') -%}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "steps"},
	} {
		start := time.Now()
		_, _, err := newChatTemplate(engine.ChatTemplate{Source: c.source}).render(conversation)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.300v, want an error that mentions %q", name, err, c.want)
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

func FuzzChatTemplate(f *testing.F) {
	for _, c := range templatesInUse {
		f.Add(c.source, "hello")
	}
	f.Fuzz(func(t *testing.T, source, text string) {
		_, _, _ = newChatTemplate(engine.ChatTemplate{Source: source}).render([]message{{Role: "user", Content: content{text: text, set: true}}})
	})
}
