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
    Hung,
    busy,
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
    settings = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    for patience in (60, 60, 120):
        try:
            print(run(*command, refused="Error", patience=patience, cwd=folder, env=settings))
            break
        except Hung:
            # On a busy machine its processes now and then wait for each other for ever. That it is
            # not the worker that they wait for is seen there.
            if patience == 120 or busy():
                raise
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    same([r["info"]["error"] for r in benchmark["requests"]["errored"]], [])
    return benchmark["requests"]["successful"]


@client.works("benchmark")
def benchmark():
    done = guidellm("kind=synthetic_text,prompt_tokens=64,output_tokens=32", 8, "/v1/completions")
    same([r["output_metrics"]["text_tokens"] for r in done], [32] * 8)  # ignore_eos
    holds(all(r["input_metrics"]["text_tokens"] >= 64 for r in done), done[0])


@client.works("completion")
def completion():
    file = folder / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    done = guidellm(f"kind=text_file,path={file}", 4, "/v1/completions", {"max_tokens": 16})
    want = {text(prompt=p, max_tokens=16) for p in [PROMPTS[0] + "\n", PROMPTS[1]]}
    same({r["output"] for r in done}, want)


@client.works("chat")
def chat():
    file = folder / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    body = {"max_completion_tokens": 16}
    done = guidellm(f"kind=text_file,path={file}", 4, "/v1/chat/completions", body)
    texts = [PROMPTS[0] + "\n", PROMPTS[1]]
    want = {said(messages=[{"role": "user", "content": p}], max_tokens=16) for p in texts}
    same({r["output"] for r in done}, want)


if __name__ == "__main__":
    client.run()
