#!/bin/sh
# One sentinel of the compose profile sentinel. It keeps what it knows in its configuration file, which is written only once.
set -eu
[ -e /data/sentinel.conf ] || cat >/data/sentinel.conf <<CONF
port 26379
dir /data
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $HOSTNAME
sentinel monitor master sentinel-redis-1 6379 2
sentinel down-after-milliseconds master 3000
sentinel failover-timeout master 10000
CONF
exec redis-server /data/sentinel.conf --sentinel
