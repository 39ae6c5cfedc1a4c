# environment: http
"""schemathesis: good and bad requests made from OpenAPI descriptions, answers held to them.

Among them are purges, exchanges of weights and warm-ups: it has a worker and a coordinator of its
own.
"""

import os
import re
import tempfile
import urllib.request
from pathlib import Path

from common import TOKEN, Client, holds, run

client = Client("schemathesis", "schemathesis")


def fuzz(server: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="kvtier-schemathesis-"))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with urllib.request.urlopen(
        urllib.request.Request(server + "/openapi.yaml", headers=headers)
    ) as answer:
        (folder / "openapi.yaml").write_bytes(answer.read())
    out = run(
        "st", "run", "openapi.yaml", "--url", server, "-H", f"Authorization: Bearer {TOKEN}",
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", "25",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_headers_conformance,response_schema_conformance,unsupported_method,"
        "allow_header_conformance,ignored_auth",
        # a model other than the one that is there is drawn seldom enough for it to complain
        "--suppress-health-check", "filter_too_much", "--seed", "1",
        "--generation-database", "none", "--warnings", "off", "--no-color",
        "--continue-on-failure", cwd=folder, refused=r"^- ST\d+|^Failures:",
    )  # fmt: skip
    print(out)
    tried = re.search(r"Tested: (\d+)", out)
    selected = re.search(r"Operations: +(\d+) selected / (\d+) total", out)
    holds(tried and selected and tried[1] == selected[1] == selected[2], out)


@client.works("every route of the worker")
def worker():
    fuzz(os.environ["KVTIER_SCRATCH_WORKER"])


@client.works("every route of the coordinator")
def coordinator():
    fuzz(os.environ["KVTIER_SCRATCH_COORDINATOR"])


if __name__ == "__main__":
    client.run()
