#!/usr/bin/env bash
# promtool over deploy/prometheus: this machine's, or the one in the image that compose uses.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/prometheus"
if command -v promtool >/dev/null; then
  promtool=(promtool)
else
  image=$(grep -oE 'prom/prometheus:[^ ]+' ../../docker-compose.yml)
  promtool=(docker run --rm --network none -v "$PWD:/rules:ro" -w /rules --entrypoint promtool "$image")
fi
"${promtool[@]}" check config prometheus.yml
"${promtool[@]}" test rules rules_test.yml
