#!/usr/bin/env bash
# The whole thing once, the way a user runs it: docker compose up, a prompt to worker 1, the same prompt to worker 2. Worker 2
# has never seen it, so the tokens it reports as cached came through Redis; and greedy output must be the same on both.
# Removes what it started. Needs docker compose and curl.
#
#   KVTIER_SMOKE_KEEP=1   leave the containers running
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# a project and ports of its own, so that it disturbs no compose project that is already up
export COORDINATOR_PORT=${COORDINATOR_PORT:-18090} WORKER_1_PORT=${WORKER_1_PORT:-18081} WORKER_2_PORT=${WORKER_2_PORT:-18082}
compose=(docker compose -p kvtier-smoke)

finish() {
  local status=$?
  if [ "$status" != 0 ]; then
    "${compose[@]}" ps -a || true
    "${compose[@]}" logs --no-color --tail 40 || true
    echo "smoke: FAILED"
  fi
  [ -n "${KVTIER_SMOKE_KEEP:-}" ] || "${compose[@]}" --profile warmup down -v --remove-orphans >/dev/null 2>&1 || true
  exit "$status"
}
trap finish EXIT
say() { echo "smoke: $*"; }
die() { say "$*"; exit 1; }

# number NAME JSON: the value of a numeric field, whose name is unique in a completion
number() { grep -oE "\"$1\": *[0-9]+" <<<"$2" | grep -oE '[0-9]+$' || die "no $1 in the answer: $2"; }
# text JSON: the completion, still as a JSON string
text() { grep -oE '"text": *"([^"\\]|\\.)*"' <<<"$1" || die "no text in the answer: $1"; }
# complete PORT SALT: greedy, so that two answers can be compared
complete() {
  curl -sS --fail-with-body --max-time 60 -H 'Content-Type: application/json' "http://127.0.0.1:$1/v1/completions" \
    -d "{\"prompt\": \"$prompt\", \"max_tokens\": 16, \"temperature\": 0, \"cache_salt\": \"$2\"}"
}

say "docker compose up --build --wait"
start=$SECONDS
up=$("${compose[@]}" up --build --wait --quiet-pull 2>&1) || { tail -n 40 <<<"$up"; die "compose up failed"; }
say "up after $((SECONDS - start)) s"

read -r prompt <deploy/warmup/prompts.txt
case $prompt in *[\"\\]*) die "the first sample prompt would need escaping" ;; esac

# Worker 1 shares its blocks in the background. Each attempt is a tenant of its own, so that no attempt finds what an
# earlier one left in worker 2's memory.
for attempt in 1 2 3 4 5; do
  salt="smoke-$$-$attempt"
  first=$(complete "$WORKER_1_PORT" "$salt")
  [ "$(number cached_tokens "$first")" = 0 ] || die "worker 1 found a prompt that nobody has sent: $first"
  sleep "$attempt"
  second=$(complete "$WORKER_2_PORT" "$salt")
  cached=$(number cached_tokens "$second")
  [ "$(text "$first")" = "$(text "$second")" ] || die "different output: worker 1 $first, worker 2 $second"
  [ "$cached" = 0 ] || break
  say "attempt $attempt: nothing shared yet"
done
[ "$cached" -gt 0 ] || die "worker 2 never found what worker 1 computed: $second"
[ "$(number kvtier_remote_tokens "$second")" -gt 0 ] || die "cached, but not through the remote tier: $second"
say "worker 2 took $cached of $(number prompt_tokens "$second") prompt tokens from the tier; same output as worker 1"

say "warm-up job"
"${compose[@]}" run --rm -T warmup </dev/null 2>&1 | grep -v '^ Container'
say "ok, $((SECONDS - start)) s in all"
