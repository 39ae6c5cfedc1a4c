#!/usr/bin/env bash
# Makes a Docker engine, docker compose and every image that compose and the tests use available, with a registry or
# without one. On a machine with nothing but Go it needs root on Debian; where all is there it takes a second.
#
#   deploy/offline/images.sh [IMAGE...]     default: redis:8.0 redis:7.0.15 valkey/valkey:9 golang:1.26-bookworm prom/prometheus:v3.5.0 ghcr.io/ggml-org/llama.cpp:server
#   . deploy/offline/images.sh              the defaults, and the settings that testcontainers needs on this machine
#
# Sourced, it leaves nothing behind but those settings, and returns 1 when something could not be had.
_kvtier_offline() {
  local here image
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  "$here/engine.sh" && "$here/compose.sh" || return 1
  for image in "$@"; do
    "$here/image.sh" "$image" || return 1
  done
}
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  [ $# -gt 0 ] || set -- redis:8.0 redis:7.0.15 valkey/valkey:9 golang:1.26-bookworm prom/prometheus:v3.5.0 ghcr.io/ggml-org/llama.cpp:server
  _kvtier_offline "$@" || exit 1
  echo "ready; for tests that start containers from this shell: . ${BASH_SOURCE[0]}"
  exit
fi
_kvtier_offline redis:8.0 redis:7.0.15 valkey/valkey:9 golang:1.26-bookworm prom/prometheus:v3.5.0 ghcr.io/ggml-org/llama.cpp:server || { unset -f _kvtier_offline; return 1; }
unset -f _kvtier_offline

# testcontainers' reaper is an image too; without a registry the tests' own cleanup must do (testcontainers.CleanupContainer)
[ -n "$(docker image ls -q testcontainers/ryuk)" ] || export TESTCONTAINERS_RYUK_DISABLED=true
# where the machine is itself a container, testcontainers would dial the default gateway instead of this machine's loopback
[ ! -e /.dockerenv ] || export TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1
