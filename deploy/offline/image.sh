#!/usr/bin/env bash
# One image, under the name that users pull: the local one, else pulled, else built from Debian packages.   image.sh NAME
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$1
present() { docker image inspect "$name" >/dev/null 2>&1; }
present && exit 0
one_at_a_time
present && exit 0

start=$SECONDS
# stdout and stderr are dropped: no route to a registry is an ordinary case here, and a failed build speaks for itself
if timeout "${KVTIER_PULL_TIMEOUT:-180}" docker pull -q "$name" >/dev/null 2>&1 </dev/null; then
  say "$name pulled ($((SECONDS - start)) s)"
  exit 0
fi
case $name in
  redis:8.0) recipe=(redis.sh "$name" redis-server trixie) ;;
  redis:7.0.15) recipe=(redis.sh "$name" redis-server bookworm) ;; # Debian 12's and Ubuntu 24.04's own
  valkey/valkey:9) recipe=(redis.sh "$name" valkey-server sid) ;;
  prom/prometheus:*) recipe=(prometheus.sh "$name") ;;
  ghcr.io/ggml-org/llama.cpp:server) recipe=(llama.sh "$name") ;;
  golang:1.26-bookworm) recipe=(golang.sh "$name") ;;
  *) die "$name: cannot be pulled, and there is no recipe to build it" ;;
esac
"$here/${recipe[0]}" "${recipe[@]:1}"
say "$name built from packages: no registry ($((SECONDS - start)) s)"
