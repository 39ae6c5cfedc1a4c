#!/usr/bin/env bash
# The whole thing once, the way a user runs it: docker compose up, prompts to several replicas, new weights, a Redis that restarts, more
# replicas, a warm-up, down. Every answer is compared with the one that other replicas gave: greedy output must be the same whether its
# prefix was computed, hot, or came through Redis. Removes what it started and checks that nothing is left. Needs docker compose and curl.
#
#   KVTIER_SMOKE_KEEP=1          leave the containers running
#   KVTIER_SMOKE_MODES="valkey sentinel"   other modes to drive: of cluster, sentinel, valkey, tls; default all, "" for none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# a project and ports of its own, so that it disturbs no compose project that is already up
export COORDINATOR_PORT=${COORDINATOR_PORT:-18090} WORKER_PORTS=${WORKER_PORTS:-18081-18089}
export CLUSTER_WORKER_PORTS=18111-18119 SENTINEL_WORKER_PORTS=18121-18129 VALKEY_WORKER_PORTS=18131-18139 TLS_WORKER_PORTS=18141-18149
modes=${KVTIER_SMOKE_MODES-cluster sentinel valkey tls}
project=kvtier-smoke-$$
compose=(docker compose -p "$project")

finish() {
  local status=$?
  if [ "$status" != 0 ]; then
    "${compose[@]}" --profile '*' ps -a || true
    "${compose[@]}" --profile '*' logs --no-color --tail 30 || true
    echo "smoke: FAILED"
  fi
  [ -n "${KVTIER_SMOKE_KEEP:-}" ] || "${compose[@]}" --profile '*' down -v --remove-orphans --timeout 2 >/dev/null 2>&1 || true
  exit "$status"
}
trap finish EXIT
start=$SECONDS
say() { printf 'smoke: %3d s  %s\n' $((SECONDS - start)) "$*"; }
die() { say "$*"; exit 1; }

# number NAME JSON: the value of a numeric field, whose name is unique in a completion
number() { grep -oE "\"$1\": *[0-9]+" <<<"$2" | grep -oE '[0-9]+$' || die "no $1 in the answer: $2"; }
# string NAME JSON: the same of a text, still in its quotes
string() { grep -oE "\"$1\": *\"([^\"\\]|\\\\.)*\"" <<<"$2" | sed 's/^[^:]*: *//' || die "no $1 in the answer: $2"; }

# port SERVICE INDEX: where a replica can be reached from here
port() { "${compose[@]}" --profile '*' port --index "$2" "$1" 8080; }
# complete SERVICE INDEX SALT: greedy, so that two answers can be compared
complete() {
  curl -sS --fail-with-body --max-time 60 -H 'Content-Type: application/json' "http://$(port "$1" "$2")/v1/completions" \
    -d "{\"prompt\": \"$prompt\", \"max_tokens\": 16, \"temperature\": 0, \"cache_salt\": \"$3\"}"
}
up() {
  local out
  out=$("${compose[@]}" "$@" 2>&1) || { tail -n 40 <<<"$out"; die "docker compose $* failed"; }
}
# all_healthy: every container runs and is healthy
all_healthy() {
  local bad
  bad=$("${compose[@]}" --profile '*' ps --format '{{.Service}}: {{.Status}}' | grep -v '(healthy)' || true)
  [ -z "$bad" ] || die "not healthy: $bad"
}

# Replicas share their blocks in the background. Each attempt is a tenant of its own, so that none finds what an earlier one left in a
# worker's memory.
attempt=0
# share SERVICE FROM TO: what replica FROM computes, replica TO finds through Redis, and says the same
share() {
  local try first second cached
  for try in 1 2 3 4 5 6; do
    attempt=$((attempt + 1))
    first=$(complete "$1" "$2" "smoke-$attempt")
    [ "$(number cached_tokens "$first")" = 0 ] || die "$1 $2 found a prompt that nobody has sent: $first"
    sleep "0.$try"
    second=$(complete "$1" "$3" "smoke-$attempt")
    [ "$(string text "$first")" = "$(string text "$second")" ] || die "different output: $1 $2 $first, $1 $3 $second"
    cached=$(number kvtier_remote_tokens "$second")
    [ "$cached" = 0 ] || break
    sleep "$try" # Redis may just be back, and the breaker still open
  done
  [ "$cached" -gt 0 ] || die "$1 $3 never found what $1 $2 computed: $second"
  say "$1 $3 took $cached of $(number prompt_tokens "$second") prompt tokens of $1 $2 from Redis; same output"
  answer=$second
}

read -r prompt <deploy/warmup/prompts.txt
prompt="$prompt $prompt $prompt $prompt" # long enough to be worth a fetch: what is computed sooner than fetched is computed
case $prompt in *[\"\\]*) die "the first sample prompt would need escaping" ;; esac

up up --build --wait --quiet-pull
all_healthy
say "up: $("${compose[@]}" ps --format '{{.Name}}' | wc -l) containers healthy"
share worker 1 2
share worker 2 1

old=$(string label "$answer") old=${old//\"/}
new=$(case $old in *v1) echo shakespeare-3m-v2 ;; *) echo shakespeare-3m-v1 ;; esac)
salt="smoke-$attempt" # what both workers have of the old weights
"${compose[@]}" exec -T coordinator /kvtier model activate shakespeare "$new" >/dev/null
for index in 1 2; do
  for _ in $(seq 50); do
    swapped=$(complete worker "$index" "$salt")
    [ "$(string label "$swapped")" != "\"$new\"" ] || break
    sleep 0.2
  done
  [ "$(string label "$swapped")" = "\"$new\"" ] || die "worker $index does not serve $new: $swapped"
  # the first answer of the new weights to anybody; the second worker may already have it from the first
  [ "$index" != 1 ] || [ "$(number cached_tokens "$swapped")" = 0 ] || die "new weights use what the old ones computed: $swapped"
done
[ "$(string text "$swapped")" != "$(string text "$answer")" ] || die "other weights, same output: $swapped"
say "weights swapped from $old to $new on both workers, nothing of the old ones used"
share worker 1 2

up stop redis
for _ in 1 2 3 4 5; do complete worker 1 outage >/dev/null; complete worker 2 outage >/dev/null; done
up up --wait --no-recreate
say "10 requests answered without Redis, which is back, empty"
share worker 1 2

up up --wait --no-recreate --scale worker=4
all_healthy
say "scaled to 4 workers"
share worker 1 4
share worker 3 2

"${compose[@]}" run --rm -T warmup </dev/null 2>&1 | grep -v '^ Container'

for mode in $modes; do
  up --profile "$mode" up --wait --quiet-pull "worker-$mode"
  all_healthy
  say "profile $mode is up"
  share "worker-$mode" 1 2
  "${compose[@]}" --profile "$mode" rm -fsv "worker-$mode" "coordinator-$mode" >/dev/null 2>&1
done

[ -z "${KVTIER_SMOKE_KEEP:-}" ] || exit 0
"${compose[@]}" --profile '*' down -v --remove-orphans --timeout 5 >/dev/null 2>&1 || die "down failed"
left=$(docker ps -aq --filter "label=com.docker.compose.project=$project"; docker volume ls -q --filter "label=com.docker.compose.project=$project"
  docker network ls -q --filter "label=com.docker.compose.project=$project")
[ -z "$left" ] || die "left behind: $left"
say "ok: down, nothing left"
