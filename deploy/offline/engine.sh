#!/usr/bin/env bash
# A running Docker engine: the one that answers, or Debian's docker.io started in the background. Idempotent.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
docker info >/dev/null 2>&1 && exit 0
one_at_a_time
docker info >/dev/null 2>&1 && exit 0 # another run started it while this one waited

need_root_on_debian "start a Docker engine"
# /usr/sbin is not on every root's PATH, and a machine may have a newer client than Debian's: only the daemon matters here
PATH=$PATH:/usr/sbin:/sbin
command -v dockerd >/dev/null || debian_install docker.io iptables
if ! docker info >/dev/null 2>&1; then # where there is an init system, installing has already started it
  say "starting dockerd"
  log=${TMPDIR:-/tmp}/kvtier-dockerd.log
  setsid dockerd >"$log" 2>&1 </dev/null 9>&- &
  for _ in $(seq 120); do
    if docker info >/dev/null 2>&1 || ! kill -0 $! 2>/dev/null; then break; fi
    sleep 0.25
  done
  docker info >/dev/null 2>&1 || { tail -n 20 "$log" >&2; die "dockerd did not start (its log: $log)"; }
fi
say "engine $(docker version --format '{{.Server.Version}}') is up"
