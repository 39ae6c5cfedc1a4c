# environment: aiperf
"""AIPerf, NVIDIA's benchmark."""

import json
import os
import tempfile
from pathlib import Path

from common import (
    MODEL,
    TOKEN,
    TOKENIZER,
    WORKER,
    Client,
    holds,
    run,
    said,
    same,
    text,
)

client = Client("AIPerf", "aiperf")
PROMPTS = ["PETRUCHIO:\nGood morrow, Kate;", "KATHARINA:\nThey call me"]


def aiperf(kind: str, *more: str) -> tuple[dict, list[dict]]:
    """Runs a benchmark: what it sums up, and its requests."""
    folder = Path(tempfile.mkdtemp(prefix="kvtier-aiperf-"))
    command = ["aiperf", "profile", "--model", MODEL, "--url", WORKER, "--api-key", TOKEN]
    command += ["--tokenizer", TOKENIZER, "--endpoint-type", kind, "--streaming", "--ui", "simple"]
    command += ["--concurrency", "2", "--extra-inputs", "temperature:0", "--export-outputs-json"]
    command += ["--artifact-dir", str(folder), *more]
    # offline, it looks for a tokenizer in the hub's cache even if it is given a folder
    settings = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    print(run(*command, env={**settings, "HOME": str(folder)}))
    summary = json.loads((folder / "profile_export_aiperf.json").read_text())
    return summary, json.loads((folder / "outputs.json").read_text())["data"]


def prompts(folder: str) -> list[str]:
    file = Path(folder, "prompts.jsonl")
    file.write_text("".join(json.dumps({"text": p}) + "\n" for p in PROMPTS))
    wanted = ["--input-file", str(file), "--custom-dataset-type", "single_turn"]
    return [*wanted, "--request-count", "4"]


@client.works("completion")
def completion():
    with tempfile.TemporaryDirectory() as folder:
        more = [*prompts(folder), "--extra-inputs", "max_tokens:16"]
        _, done = aiperf("completions", *more)
    same(len(done), 4)
    same({r["response_text"] for r in done}, {text(prompt=p) for p in PROMPTS})


@client.works("chat")
def chat():
    with tempfile.TemporaryDirectory() as folder:
        more = [*prompts(folder), "--extra-inputs", "max_completion_tokens:16"]
        _, done = aiperf("chat", *more)
    want = {said(messages=[{"role": "user", "content": p}], max_tokens=16) for p in PROMPTS}
    same({r["response_text"] for r in done}, want)


@client.works("benchmark")
def benchmark():
    summary, done = aiperf(
        "completions", "--request-count", "8", "--synthetic-input-tokens-mean", "64",
        "--synthetic-input-tokens-stddev", "0", "--output-tokens-mean", "32",
        "--use-server-token-count",
        "--extra-inputs", "ignore_eos:true", "--extra-inputs", "min_tokens:32",
    )  # fmt: skip
    same(len(done), 8)
    same([r["metrics"]["output_sequence_length"] for r in done], [32] * 8)
    holds(not summary.get("error_summary"), summary.get("error_summary"))


if __name__ == "__main__":
    client.run()
