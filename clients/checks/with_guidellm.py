# environment: guidellm
"""guidellm, on prompts of a file and on synthetic ones."""

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

client = Client("guidellm", "guidellm")
folder = Path(tempfile.mkdtemp(prefix="kvtier-guidellm-"))
PROMPTS = ["PETRUCHIO: Good morrow, Kate; for that's your name,", "KATHARINA: They call me"]


def guidellm(data: str, requests: int, request_format: str, extras: dict | None = None) -> list:
    """Runs a benchmark and returns its successful requests; the others fail the check."""
    backend = {
        "kind": "openai_http",
        "target": WORKER,
        "model": MODEL,
        "api_key": TOKEN,
        "request_format": request_format,
        "extras": {"body": {"temperature": 0, **(extras or {})}},
    }
    out = folder / "benchmarks.json"
    command = ["guidellm", "run", "--backend", json.dumps(backend), "--data", data]
    command += ["--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"]
    command += ["--profile", "kind=concurrent,streams=2", "--disable-console-interactive"]
    command += ["--constraint", f"kind=max_requests,count={requests}"]
    command += ["--output", f"kind=json,path={out}"]
    settings = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}  # enough for two streams
    print(run(*command, refused="Error", cwd=folder, env=settings))
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    same([r["info"]["error"] for r in benchmark["requests"]["errored"]], [])
    return benchmark["requests"]["successful"]


@client.works("benchmark")
def benchmark():
    done = guidellm("kind=synthetic_text,prompt_tokens=64,output_tokens=32", 8, "/v1/completions")
    same([r["output_metrics"]["text_tokens"] for r in done], [32] * 8)  # ignore_eos
    holds(all(r["input_metrics"]["text_tokens"] >= 64 for r in done), done[0])


def file() -> str:
    """More prompts than requests: at the end of its data guidellm may wait for ever."""
    path = folder / "prompts.txt"
    path.write_text("".join(p + "\n" for p in PROMPTS) * 8)
    return f"kind=text_file,path={path}"


@client.works("completion")
def completion():
    done = guidellm(file(), 4, "/v1/completions", {"max_tokens": 16})
    same({r["output"] for r in done}, {text(prompt=p + "\n", max_tokens=16) for p in PROMPTS})


@client.works("chat")
def chat():
    done = guidellm(file(), 4, "/v1/chat/completions", {"max_completion_tokens": 16})
    asked = [[{"role": "user", "content": p + "\n"}] for p in PROMPTS]
    same({r["output"] for r in done}, {said(messages=m, max_tokens=16) for m in asked})


if __name__ == "__main__":
    client.run()
