# environment: llm
"""`llm`, the program for terminals, with kvtier in its extra-openai-models.yaml."""

import json
import os
import tempfile
from pathlib import Path

from common import LONG, MODEL, SCENE, TOKEN, URL, Client, holds, run, said, same, text

client = Client("llm", "llm")
folder = Path(tempfile.mkdtemp(prefix="kvtier-llm-"))
server = {"model_name": MODEL, "api_base": URL, "api_key_name": "kvtier"}
models = [
    {"model_id": "chat", **server, "supports_schema": True, "supports_tools": True},
    {"model_id": "text", **server, "completion": True},
    {"model_id": "nobody", **server, "model_name": "nobody"},
    {"model_id": "responses", **server, "responses": True},
]
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
(folder / "keys.json").write_text(json.dumps({"kvtier": TOKEN}))
GREEDY = ["-o", "temperature", "0", "-o", "max_tokens", "16"]
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}})
SAID = "They call me Katharina."


def llm(*command: str, token: str = "") -> str:
    words = [*command, *(["--key", token] if token else [])]
    settings = {**os.environ, "LLM_USER_PATH": str(folder)}
    return run("llm", *words, refused="^Error", env=settings)


def expected() -> str:
    return said(messages=[{"role": "user", "content": SAID}], max_tokens=16)


@client.works("completion")
def completion():
    same(llm("prompt", "-m", "text", *GREEDY, SCENE), text(prompt=SCENE) + "\n")


@client.works("chat")
def chat():
    same(llm("prompt", "-m", "chat", "--no-stream", *GREEDY, SAID), expected() + "\n")
    turns = [
        {"role": "user", "content": SAID},
        {"role": "assistant", "content": expected()},
        {"role": "user", "content": "You lie."},
    ]
    second = llm("prompt", "-c", "-m", "chat", "--no-stream", *GREEDY, "You lie.")
    same(second, said(messages=turns, max_tokens=16) + "\n")


@client.works("stream")
def stream():
    same(llm("prompt", "-m", "chat", *GREEDY, SAID), expected() + "\n")


@client.works("usage in streams")
def usage():
    out = llm("prompt", "-m", "chat", "-u", *GREEDY, SAID)
    holds("16 output" in out, out)


@client.refuses("context overflow", "This model's maximum context length is 2048 tokens")
def overflow():
    llm("prompt", "-m", "chat", *GREEDY, LONG)


@client.refuses("unknown model", "nobody")
def unknown_model():
    llm("prompt", "-m", "nobody", *GREEDY, SAID)


@client.refuses("wrong token", "401")
def wrong_token():
    llm("prompt", "-m", "chat", *GREEDY, SAID, token="wrong")


@client.refuses("tools", "tools")
def tools():
    llm("prompt", "-m", "chat", "-T", "llm_version", *GREEDY, SAID)


@client.refuses("json_schema", "json_schema")
def json_schema():
    llm("prompt", "-m", "chat", "--schema", SCHEMA, *GREEDY, SAID)


@client.refuses("Responses API", "404")
def responses():
    llm("prompt", "-m", "responses", "-o", "temperature", "0", SAID)


if __name__ == "__main__":
    client.run()
