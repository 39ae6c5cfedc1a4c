"""What the checks of clients share.

A check is a function for one feature of one client. What it gets through the client is compared
with what a plain request to the *other* worker answers: the text has to be the same whatever the
client and whichever worker has computed the prefix.

    client = Client("OpenAI, Python", "openai")

    @client.works("completion")
    def completion(): same(openai.completions.create(...).choices[0].text, text(prompt=SCENE))

    @client.refuses("tools", "tools")  # must raise, and what a user sees must contain the word
    def tools(): ...

    client.run()

One line of JSON per feature goes to $KVTIER_REPORT: {"client", "version", "feature", "result",
"ok"}. Arguments name features: only these are checked.
"""

import asyncio
import importlib.metadata
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path

WORKER = os.environ["KVTIER_WORKER"]  # http://host:port of the worker that clients speak to
OTHER = os.environ["KVTIER_OTHER"]  # of the one that answers plain requests
MODEL = os.environ["KVTIER_MODEL"]
TOKEN = os.environ["KVTIER_TOKEN"]
ENVIRONMENTS = Path(os.environ["KVTIER_CLIENTS"])
TOKENIZER = str(ENVIRONMENTS / "tokenizer")
URL = WORKER + "/v1"

SCENE = (
    "PETRUCHIO:\nGood morrow, Kate; for that's your name, I hear.\n\n"
    "KATHARINA:\nWell have you heard, but something hard of hearing:\n"
    "They call me Katharina that do talk of me.\n\n"
    "PETRUCHIO:\nYou lie, in faith; for you are call'd plain Kate,\n"
    "And bonny Kate and sometimes Kate the curst;\n"
)
OTHERS = ["GREMIO:\n", "LUCENTIO:\nTranio, since for the great desire I had\n"]
CHAT = [
    {"role": "system", "content": "Padua. A public place."},
    {"role": "user", "content": "They call me Katharina that do talk of me."},
]
LONG = SCENE * 40  # more than the 2,048 tokens of the context
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "name",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def post(path: str, body: dict, url: str = OTHER) -> dict:
    """A plain request, without any client."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def complete(**body) -> dict:
    return post("/v1/completions", {"model": MODEL, "temperature": 0, **body})


def text(**body) -> str:
    return complete(**body)["choices"][0]["text"]


def chat(**body) -> dict:
    return post("/v1/chat/completions", {"model": MODEL, "temperature": 0, **body})


def said(**body) -> str:
    return chat(**body)["choices"][0]["message"]["content"]


def tokens(prompt: str) -> list[int]:
    return post("/v1/warm/tokens", {"prompts": [prompt]})["tokens"][0]


def same(got, want) -> None:
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def holds(condition: bool, *what) -> None:
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


class Refused(Exception):
    """What a client that is a program said when it gave up."""

    def __str__(self) -> str:
        return self.args[0]


def run(*command: str, refused: str = "", **settings) -> str:
    """Runs a program of this environment.

    If it fails, raises Refused with the last line in which the pattern `refused` is found.
    """
    program = str(Path(sys.executable).with_name(command[0]))
    process = subprocess.Popen(
        [program, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **settings,
    )
    try:
        out, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)  # some have processes of their own
        print(process.communicate()[0], file=sys.stderr)
        raise AssertionError(f"{command[0]} did not end within 4 minutes") from error
    if process.returncode == 0:
        return out
    print(out, file=sys.stderr)
    lines = [line for line in out.splitlines() if line.strip()]
    told = [line for line in lines if refused and re.search(refused, line)]
    if told:
        raise Refused(told[-1].strip())
    raise AssertionError(f"{command[0]} ended with {process.returncode}: {(lines or [''])[-1]}")


def plainly(error: BaseException) -> str:
    """An error as its user sees it, on one line and without what differs from run to run."""
    named = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
    named = named.replace(WORKER, "http://worker").replace(TOKEN, "TOKEN")
    named = re.sub(r"req-\w+|(?<=id: )[\w-]{8,}|0x[0-9a-f]+", "…", named)
    return " ".join(named.split())


class Client:
    def __init__(self, name: str, package: str = "", version: str = "") -> None:
        self.name = name
        self.version = version or importlib.metadata.version(package or name)
        self.checks: list[tuple[str, Callable, tuple[str, ...] | None]] = []

    def works(self, feature: str) -> Callable:
        return lambda check: self.checks.append((feature, check, None)) or check

    def refuses(self, feature: str, *words: str) -> Callable:
        return lambda check: self.checks.append((feature, check, words)) or check

    def run(self) -> None:
        only = sys.argv[1:]  # names of features, for whoever works on one
        failed = False
        with open(os.environ.get("KVTIER_REPORT", "/dev/stdout"), "a") as report:
            for feature, check, words in self.checks:
                if only and feature not in only:
                    continue
                result, ok = judge(check, words)
                failed = failed or not ok
                line = {"client": self.name, "version": self.version, "feature": feature}
                print(json.dumps({**line, "result": result, "ok": ok}), file=report, flush=True)
        sys.exit(failed)


def judge(check: Callable, words: tuple[str, ...] | None) -> tuple[str, bool]:
    """Runs a check: what the table says of it, and whether that is as it should be."""
    try:
        if inspect.iscoroutinefunction(check):
            asyncio.run(check())
        else:
            check()
    except AssertionError as error:
        traceback.print_exc()
        return plainly(error), False
    except Exception as error:
        ok = words is not None and all(word in str(error) for word in words)
        if not ok:
            traceback.print_exc()
        return plainly(error), ok
    if words is not None:
        return "no error", False
    return "works", True
