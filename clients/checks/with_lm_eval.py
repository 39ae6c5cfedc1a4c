# environment: lm-eval
"""EleutherAI's lm-evaluation-harness: local-completions on two tasks whose data is made here."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import (
    MODEL,
    TOKEN,
    TOKENIZER,
    URL,
    Client,
    complete,
    holds,
    same,
    text,
    tokens,
)

client = Client("lm-evaluation-harness", "lm-eval")
folder = Path(tempfile.mkdtemp(prefix="kvtier-lm-eval-"))

QUESTIONS = [
    {"context": "PETRUCHIO:\nGood morrow, Kate; for that's your", "endings": [" name", " horse"]},
    {"context": "KATHARINA:\nThey call me", "endings": [" Katharina that do talk of me.", " a"]},
    {"context": "GREMIO:\nGood morrow, neighbour", "endings": [" Baptista.", " xylophone."]},
]
CHOICE = """
task: kvtier_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %(data)s}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: "{{endings}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: kvtier_write
dataset_path: json
dataset_kwargs: {data_files: {test: %(data)s}}
output_type: generate_until
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "{{endings[0]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def evaluate(task: str, batch: int, **more) -> list[dict]:
    """Runs lm_eval and returns what it has logged of each request, by document."""
    out = Path(tempfile.mkdtemp(dir=folder))
    model = {
        "model": MODEL,
        "base_url": f"{URL}/completions",
        "tokenizer": TOKENIZER,
        "tokenizer_backend": "huggingface",
        "num_concurrent": 2,
        "max_length": 2048,
        "max_retries": 1,
        **more,
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{k}={v}" for k, v in model.items())]
    command += ["--include_path", str(folder), "--tasks", task, "--batch_size", str(batch)]
    command += ["--log_samples", "--output_path", str(out)]
    settings = {**os.environ, "OPENAI_API_KEY": TOKEN, "HF_DATASETS_OFFLINE": "1"}
    settings["HF_HOME"] = str(folder / "cache")
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        raise AssertionError(f"lm_eval: {done.stderr.strip().splitlines()[-1]}")
    (log,) = out.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    return sorted(samples, key=lambda s: s["doc_id"])


def prepare() -> None:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    for name, task in {"choice": CHOICE, "write": WRITE}.items():
        (folder / f"{name}.yaml").write_text(task % {"data": data})


def scored(context: str, ending: str) -> float:
    """The log-probability of an ending, from a plain request that echoes it."""
    whole = tokens(context + ending)
    choice = complete(prompt=whole, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    return sum(choice["logprobs"]["token_logprobs"][len(tokens(context)) :])


def generated(context: str) -> float:
    """The log-probability of the likeliest token after a context, as that of an answer."""
    choice = complete(prompt=tokens(context), max_tokens=1, logprobs=1)["choices"][0]
    return choice["logprobs"]["token_logprobs"][0]


@client.works("echo, log-probabilities")
def scoring():
    samples = evaluate("kvtier_choice", 1)
    right = []
    for sample, question in zip(samples, QUESTIONS, strict=True):
        context = question["context"]
        first, second = (scored(context, ending) for ending in question["endings"])
        right.append(float(first > second))
        for ending, answer in zip(question["endings"], sample["filtered_resps"], strict=True):
            want = scored(context, ending)
            holds(abs(float(answer[0]) - want) < 1e-4, ending, answer, want)
            # the harness calls greedy what the model would have said itself
            one = len(tokens(context + ending)) == len(tokens(context)) + 1
            if one and str(answer[1]) == "True":
                holds(abs(want - generated(context)) < 1e-4, ending, want)
    same([s["acc"] for s in samples], right)


@client.works("several prompts")
def several():
    alone, together = evaluate("kvtier_choice", 1), evaluate("kvtier_choice", 4)
    same([s["filtered_resps"] for s in together], [s["filtered_resps"] for s in alone])


@client.works("token ids")
def token_ids():
    got = [s["resps"][0][0] for s in evaluate("kvtier_write", 2)]
    same(got, [text(prompt=q["context"], max_tokens=16, stop="\n\n") for q in QUESTIONS])


@client.works("completion")
def completion():
    got = [s["resps"][0][0] for s in evaluate("kvtier_write", 1, tokenized_requests=False)]
    same(got, [text(prompt=q["context"], max_tokens=16, stop="\n\n") for q in QUESTIONS])


if __name__ == "__main__":
    prepare()
    client.run()
