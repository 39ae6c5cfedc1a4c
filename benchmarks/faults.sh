#!/usr/bin/env bash
# Runs kvtier bench faults against a redis-server of its own and puts the table into docs/FAULTS.md.
#
#   benchmarks/faults.sh [requests for each fault, default 40]
#   SERVER=/path/to/valkey-server benchmarks/faults.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SERVER=${SERVER:-$(command -v redis-server || command -v valkey-server || true)}
if [ ! -x "$SERVER" ]; then
  echo "no redis-server or valkey-server on PATH: install one (apt-get install redis-server) or name it, SERVER=/path/to/redis-server" >&2
  exit 2
fi
tmp=$(mktemp -d)
server= # its process
stop() { [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }; rm -rf "$tmp"; }
trap stop EXIT
go build -o "$tmp/kvtier" ./cmd/kvtier
port=$((20000 + RANDOM % 20000))
"$SERVER" --port $port --bind 127.0.0.1 --save '' --appendonly no --dir "$tmp" --io-threads 1 >"$tmp/server.log" 2>&1 &
server=$!
for _ in $(seq 100); do
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
  kill -0 "$server" 2>/dev/null || { echo "the server did not start:" >&2; cat "$tmp/server.log" >&2; exit 1; }
  sleep 0.05
done
"$tmp/kvtier" bench faults --redis redis://127.0.0.1:$port --requests "${1:-40}" --write docs/FAULTS.md
