# environment: http
"""locust: users that complete and chat, whose answers are compared."""

import json
import os
import sys
import tempfile
from pathlib import Path

from common import CHAT, MODEL, SCENE, WORKER, Client, holds, run, said, same, text

client = Client("locust", "locust")

FILE = """
import json
import os

from locust import FastHttpUser, constant, task

EXPECTED = json.loads(os.environ["EXPECTED"])


class Reader(FastHttpUser):
    wait_time = constant(0)
    default_headers = {"Authorization": "Bearer " + os.environ["KVTIER_TOKEN"]}

    def ask(self, path, body, answer):
        with self.client.post(path, json=body, catch_response=True) as response:
            got = response.text
            if response.status_code == 200:
                got = answer(response.json()["choices"][0])
            if got != EXPECTED[path]:
                response.failure(f"got {got!r}, want {EXPECTED[path]!r}")

    @task
    def complete(self):
        self.ask("/v1/completions", EXPECTED["completion"], lambda choice: choice["text"])

    @task
    def chat(self):
        self.ask("/v1/chat/completions", EXPECTED["chat"], lambda c: c["message"]["content"])
"""


@client.works("benchmark")
def benchmark():
    folder = Path(tempfile.mkdtemp(prefix="kvtier-locust-"))
    (folder / "locustfile.py").write_text(FILE)
    greedy = {"model": MODEL, "temperature": 0, "max_tokens": 16}
    expected = {
        "completion": {"prompt": SCENE, **greedy},
        "chat": {"messages": CHAT, **greedy},
        "/v1/completions": text(prompt=SCENE),
        "/v1/chat/completions": said(messages=CHAT, max_tokens=16),
    }
    settings = {**os.environ, "EXPECTED": json.dumps(expected)}
    command = ["locust", "-f", str(folder / "locustfile.py"), "--host", WORKER, "--headless"]
    command += ["--users", "4", "--spawn-rate", "4", "--run-time", "5s", "--json", "--only-summary"]
    out = run(*command, refused=r"^\d+ .*got ", env=settings)
    print(out, file=sys.stderr)
    rows = json.JSONDecoder().raw_decode(out[out.index("[\n") :])[0]
    same({r["name"] for r in rows}, {"/v1/completions", "/v1/chat/completions"})
    for row in rows:
        holds(row["num_requests"] >= 10 and row["num_failures"] == 0, row)


if __name__ == "__main__":
    client.run()
