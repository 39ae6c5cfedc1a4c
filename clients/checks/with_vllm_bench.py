# environment: vllm
"""vLLM's `vllm bench serve`."""

import json
import os
import tempfile
from pathlib import Path

from common import MODEL, OTHERS, SCENE, TOKEN, TOKENIZER, WORKER, Client, run, same, text

client = Client("vllm bench serve", "vllm")
folder = Path(tempfile.mkdtemp(prefix="kvtier-vllm-"))
PROMPTS = [SCENE, *OTHERS]


def bench(*more: str) -> dict:
    settings = {
        **os.environ,
        "OPENAI_API_KEY": TOKEN,
        "VLLM_CONFIG_ROOT": str(folder),
        "VLLM_CACHE_ROOT": str(folder),
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    command = ["vllm", "bench", "serve", "--base-url", WORKER, "--model", MODEL]
    command += ["--tokenizer", TOKENIZER, "--ready-check-timeout-sec", "10", "--disable-tqdm"]
    command += ["--save-result", "--save-detailed", "--result-dir", str(folder)]
    print(run(*command, "--result-filename", "result.json", *more, env=settings))
    return json.loads((folder / "result.json").read_text())


@client.works("benchmark")
def benchmark():
    # random prompts, all the tokens that were asked for: --ignore-eos
    result = bench(
        "--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "32",
        "--num-prompts", "8", "--ignore-eos", "--max-concurrency", "4",
    )  # fmt: skip
    same((result["completed"], result["failed"]), (8, 0))
    same(result["output_lens"], [32] * 8)


@client.works("completion")
def completion():
    lines = [json.dumps({"prompt": p, "output_tokens": 16}) + "\n" for p in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(lines))
    result = bench(
        "--dataset-name", "custom", "--dataset-path", str(folder / "prompts.jsonl"),
        "--skip-chat-template", "--disable-shuffle", "--custom-output-len", "16",
        "--num-prompts", "3", "--temperature", "0",
    )  # fmt: skip
    same(result["generated_texts"], [text(prompt=p) for p in PROMPTS])


if __name__ == "__main__":
    client.run()
