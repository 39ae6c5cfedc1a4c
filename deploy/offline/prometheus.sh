#!/usr/bin/env bash
# A stand-in for the official Prometheus image, from Debian's package.   prometheus.sh TAG
# Its version is Debian's, whatever the tag says; promtool is in it, as in the official one.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
tag=$1
new_rootfs
unpack_suite trixie prometheus
slim_root
mkdir -p "$rootfs"/{prometheus,etc/prometheus}
chown 65534:65534 "$rootfs/prometheus"
import_root "$tag" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  'USER 65534:65534' 'WORKDIR /prometheus' 'VOLUME /prometheus' 'EXPOSE 9090' 'ENTRYPOINT ["/bin/prometheus"]' \
  'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
