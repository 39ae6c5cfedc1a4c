#!/usr/bin/env bash
# Runs a command next to a fresh server as measurements want it: both in a network namespace of their own (needs root; congestion
# control reno, socket buffers small), the server on CPU 0, the command on CPU 1. The command finds the server's address in
# KVTIER_BENCH_ADDR and as a URL in KVTIER_BENCH_REDIS.
#
#   internal/rawredis/measure.sh SERVER COMMAND...
#   PIN=0 internal/rawredis/measure.sh redis-server go test -run '^TestSpeed' -v ./store/redisstore
#
# SERVER is the path of redis-server or valkey-server. PIN=0 leaves both to the scheduler.
set -euo pipefail
if [ "${KVTIER_MEASURE_INNER:-}" = "" ] && [ "$(id -u)" = 0 ]; then
  KVTIER_MEASURE_INNER=1 exec unshare -n "$0" "$@"
fi
server=$1
shift
if [ "${KVTIER_MEASURE_INNER:-}" = 1 ]; then
  ip link set lo up
  sysctl -qw net.ipv4.tcp_congestion_control=reno net.ipv4.tcp_rmem="4096 131072 6291456"
fi
on() { if [ "${PIN:-1}" = 1 ]; then taskset -c "$@"; else shift; "$@"; fi; }
port=${PORT:-16379}
dir=$(mktemp -d)
on 0 "$server" --port "$port" --save '' --appendonly no --dir "$dir" --unixsocket "$dir/sock" --io-threads 1 >"$dir/log" 2>&1 &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$dir"' EXIT
for _ in $(seq 100); do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
  sleep 0.05
done
export KVTIER_BENCH_ADDR=127.0.0.1:$port KVTIER_BENCH_REDIS=redis://127.0.0.1:$port KVTIER_BENCH_SERVER_PID=$pid KVTIER_BENCH_UNIX=unix://$dir/sock
on 1 "$@"
