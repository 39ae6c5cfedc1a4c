#!/usr/bin/env bash
# Measures kvtier, and what a Go program would use instead, next to a Redis of its own, and writes JSON and Markdown.
#
#   benchmarks/run.sh                                     everything, some nine minutes
#   DURATION=15s PAIR=3s OUT=/tmp/b benchmarks/run.sh     shorter, elsewhere
#
#   DURATION   for each table of rivals                      (1m)
#   PAIR       for each value size and number of connections (10s)
#   OUT        directory of the results                      (benchmarks/results)
#   SERVER     redis-server or valkey-server to start        (the first on PATH)
#   CONNS      connections of the comparison                 (6, as a worker has)
#   POOLS      pools next to the raw ceiling                 (6 2 12: the default first, and two others)
#   PASTE      1: put the tables into docs/PERFORMANCE.md    (0)
#
# Run as root it works in a network namespace of its own, with congestion control reno and the kernel's usual small socket
# buffers: the machine's settings and other traffic do not matter then. Where there are two CPUs or more and taskset, the server
# gets CPU 0 and the client CPU 1, as if they were two machines with a core each; what needs both is measured unpinned too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export DURATION=${DURATION:-1m} PAIR=${PAIR:-10s} CONNS=${CONNS:-6} POOLS=${POOLS:-6 2 12}
export OUT=${OUT:-$PWD/results}
SERVER=${SERVER:-$(command -v redis-server || command -v valkey-server || true)}

if [ "${KVTIER_RUN_INNER:-}" = "" ]; then
  if [ ! -x "$SERVER" ]; then
    echo "no redis-server or valkey-server on PATH: install one (apt-get install redis-server) or name it, SERVER=/path/to/redis-server" >&2
    exit 2
  fi
  mkdir -p "$OUT"
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  go build -o "$tmp/rivals" .              # before the namespace cuts off the module proxy
  (cd .. && go build -o "$tmp/kvtier" ./cmd/kvtier)
  export KVTIER_RUN_INNER=1 SERVER TMP_DIR=$tmp
  if [ "$(id -u)" = 0 ] && unshare -n true 2>/dev/null && command -v ip >/dev/null; then
    NETNS=1 unshare -n "$PWD/run.sh"
  else
    echo "not root, or no unshare and ip: measuring with the machine's own network settings" >&2
    NETNS=0 "$PWD/run.sh"
  fi
  exit
fi

note="network settings of the machine"
if [ "$NETNS" = 1 ]; then
  ip link set lo up
  sysctl -qw net.ipv4.tcp_congestion_control=reno net.ipv4.tcp_rmem="4096 131072 6291456"
  note="private network namespace, reno"
fi
cpus=$(nproc)
pin() { if [ "$cpus" -ge 2 ] && command -v taskset >/dev/null; then taskset -c "$@"; else shift && "$@"; fi; }

server= # its process
stop() { [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; server=; }; }
trap stop EXIT
port=$((20000 + RANDOM % 20000))
url=redis://127.0.0.1:$port
start() { # start pinned|anywhere
  stop
  local run=(pin 0)
  [ "$1" = pinned ] || run=()
  "${run[@]}" "$SERVER" --port $port --bind 127.0.0.1 --save '' --appendonly no --dir "$TMP_DIR" --io-threads 1 \
    --maxmemory 6gb --maxmemory-policy volatile-lru >"$TMP_DIR/server.log" 2>&1 &
  server=$!
  for _ in $(seq 100); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  echo "the server did not start:" >&2
  cat "$TMP_DIR/server.log" >&2
  exit 1
}

md=$OUT/results.md
{
  echo "## Measured $(date -u +%F), $("$SERVER" --version | cut -c1-60)"
  echo
  echo "\`$(uname -srm)\`, $note. Load before: $(cut -d' ' -f1-3 /proc/loadavg 2>/dev/null || echo unknown)."
} >"$md"
section() { printf '\n### %s\n\n' "$1" >>"$md"; echo "== $1" >&2; }

start pinned
section "kvtier next to the raw ceiling, server and client on a core each"
pin 1 "$TMP_DIR/kvtier" bench remote --redis $url --value-bytes 256KiB,1MiB,2MiB,32MiB --connections "${POOLS// /,}" --duration "$PAIR" --json >"$OUT/kvtier-remote.json"
pin 1 "$TMP_DIR/rivals" --render "$OUT/kvtier-remote.json" | tee -a "$md"

section "Rivals, server and client on a core each"
pin 1 "$TMP_DIR/rivals" --redis $url --parts get,put --connections "$CONNS" --duration "$DURATION" --json "$OUT/rivals-pinned.json" \
  --note "server on CPU 0, client on CPU 1, $note" | tee -a "$md"

start anywhere
section "Rivals, wherever the scheduler puts server and client"
"$TMP_DIR/rivals" --redis $url --parts get,put,hot --connections "$CONNS" --duration "$DURATION" --json "$OUT/rivals-unpinned.json" \
  --note "not pinned, $note" | tee -a "$md"
stop

section "Without a server"
"$TMP_DIR/kvtier" bench all --duration "$PAIR" --json >"$OUT/kvtier-local.json"
"$TMP_DIR/rivals" --render "$OUT/kvtier-local.json" | tee -a "$md"
doc=../docs/PERFORMANCE.md
if [ "${PASTE:-0}" = 1 ]; then # between the two markers
  awk -v results="$md" '
    /^<!-- results: end/ { skip = 0 }
    !skip { print }
    /^<!-- results: begin/ { skip = 1; while ((getline line < results) > 0) print line }' $doc >"$TMP_DIR/doc"
  cat "$TMP_DIR/doc" >$doc
fi
echo "results: $md and $OUT/*.json" >&2
