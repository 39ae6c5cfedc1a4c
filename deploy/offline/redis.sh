#!/usr/bin/env bash
# A stand-in for the official Redis (or Valkey) image, from Debian packages.   redis.sh TAG PACKAGE SUITE
# It has no modules (search, JSON, Bloom): Debian packages none, and kvtier uses none.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
tag=$1 server=$2 suite=$3
new_rootfs
unpack_suite "$suite" "$server"
slim_root
chown 999:999 "$rootfs/data" # the official image's user redis, as which compose runs it
# Like the official entry point: bare flags or a config file are arguments of the server, which listens to everyone
# in its network. (The official image also drops to the user redis; a container of the tests or of the demo need not.)
cat >"$rootfs/usr/local/bin/docker-entrypoint.sh" <<SH
#!/bin/sh
set -e
case "\${1:-}" in -* | *.conf | '') set -- $server "\$@" ;; esac
if [ "\$1" = $server ]; then set -- "\$@" --protected-mode no; fi
exec "\$@"
SH
chmod 755 "$rootfs/usr/local/bin/docker-entrypoint.sh"
import_root "$tag" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  'WORKDIR /data' 'VOLUME /data' 'EXPOSE 6379' 'ENTRYPOINT ["docker-entrypoint.sh"]' "CMD [\"$server\"]"
