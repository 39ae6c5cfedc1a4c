#!/bin/sh
# One node of the compose profile cluster. cluster-1 to 3 are masters with a third of the slots each, cluster-4 to 6 their replicas. A node
# that starts for the first time introduces itself; its identity is in /data, so that a restart needs no introduction. What it knows of others
# says nothing about that: they may have been faster to introduce themselves.
set -eu
number=${HOSTNAME##*-}
# CLUSTER MEET takes addresses only. The engine writes a container's own into /etc/hosts.
while read -r address names; do
  case " $names " in *" $HOSTNAME "*) mine=$address ;; esac
done </etc/hosts

first() { redis-cli -h cluster-1 "$@"; }
introduce() {
  until [ "$(redis-cli ping 2>/dev/null)" = PONG ]; do sleep 0.2; done
  case $number in
    1) redis-cli cluster addslotsrange 0 5460 ;;
    2) redis-cli cluster addslotsrange 5461 10922 ;;
    3) redis-cli cluster addslotsrange 10923 16383 ;;
  esac
  [ "$number" = 1 ] || until first cluster meet "$mine" 6379 2>/dev/null; do sleep 0.5; done
  [ "$number" -gt 3 ] || return 0 # a master
  master=
  until [ -n "$master" ]; do # gossip takes a second to tell everybody
    sleep 0.5
    master=$(redis-cli -h "cluster-$((number - 3))" cluster myid 2>/dev/null) || master=
  done
  until [ "$(redis-cli cluster replicate "$master" 2>/dev/null)" = OK ]; do sleep 0.5; done
}
[ -e /data/introduced ] || { introduce >/dev/null && : >/data/introduced; } &
exec redis-server /etc/kvtier/redis.conf --protected-mode no --dir /data --cluster-enabled yes --cluster-node-timeout 3000 \
  --cluster-announce-hostname "$HOSTNAME" --cluster-preferred-endpoint-type hostname "$@"
