# shellcheck shell=bash
# Shared by the scripts here: progress lines, one run at a time, Debian packages, and a root file system that becomes an image.
set -euo pipefail

# Two runs at once (a test and a shell, say) would install and build the same things twice. The second one waits, then
# finds everything there. Called once per script; descriptor 9 is released when the script ends.
one_at_a_time() {
  exec 9>"${TMPDIR:-/tmp}/kvtier-offline-$(id -u).lock"
  flock 9
}

say() { printf 'offline: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

need_root_on_debian() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "$1: needs root on Debian (or do it by hand, then run this again)"
  fi
}

# debian_install PACKAGE...: install what is missing, quietly; print apt's words only when it fails.
debian_install() {
  local missing=() p log
  for p in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  need_root_on_debian "install ${missing[*]}"
  say "installing ${missing[*]}"
  log=$(mktemp)
  # a machine's package lists are often older than its mirror; a source that is not reachable must not stop the rest.
  # Descriptor 9 is closed: a service that a package starts must not hold the lock.
  apt-get update -q >"$log" 2>&1 9>&- || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >>"$log" 2>&1 9>&- </dev/null ||
    { cat "$log" >&2; die "apt-get install ${missing[*]} failed"; }
  rm -f "$log"
}

# debian_mirror: where this machine gets its packages from (override with DEBIAN_MIRROR).
debian_mirror() {
  local m=${DEBIAN_MIRROR:-}
  [ -n "$m" ] || m=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  [ -n "$m" ] || m=$(awk '$1 == "deb" {for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) {print $i; exit}}' /etc/apt/sources.list 2>/dev/null || true)
  echo "${m:-http://deb.debian.org/debian}"
}

# new_rootfs: an empty directory in $rootfs, removed when the script ends.
new_rootfs() {
  rootfs=$(mktemp -d)
  trap 'rm -rf "$rootfs"' EXIT
}

# unpack_suite SUITE PACKAGE: the package and what it depends on, unpacked into $rootfs. Nothing is configured and no
# maintainer script runs, which is what makes it take seconds; what such scripts would set up is done by the caller.
unpack_suite() {
  debian_install mmdebstrap debian-archive-keyring
  # an archived snapshot of a suite has a Release file past its date, which apt refuses unless told otherwise
  mmdebstrap --quiet --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$2,busybox-static" "$1" "$rootfs" "$(debian_mirror)" </dev/null
}

# slim_root: drop what a container never reads, add the shell tools that health checks and tests run inside.
slim_root() {
  local d a
  for d in bin sbin lib lib64; do
    mkdir -p "$rootfs/usr/$d"
    if [ -d "$rootfs/$d" ] && [ ! -L "$rootfs/$d" ]; then # packages of Debian 12 still have files there
      cp -a "$rootfs/$d/." "$rootfs/usr/$d/" && rm -rf "${rootfs:?}/$d"
    fi
    [ -e "$rootfs/$d" ] || ln -s "usr/$d" "$rootfs/$d"
  done
  rm -rf "$rootfs"/usr/share/{man,doc,locale,perl5,bash-completion,lintian,info,pixmaps,gdb,gcc} \
    "$rootfs"/var/lib/{apt,dpkg} "$rootfs"/var/cache "$rootfs"/usr/lib/*-linux-gnu/{gconv,perl-base,perl} \
    "$rootfs"/usr/bin/perl* "$rootfs"/usr/lib/systemd
  mkdir -p "$rootfs"/{data,tmp,proc,sys,dev,usr/local/bin}
  chmod 1777 "$rootfs/tmp"
  for a in sh cat awk grep nc sleep ls ps sed env ip ping wget tail head sha256sum stat rm mkdir kill timeout; do
    [ -e "$rootfs/usr/bin/$a" ] || ln -s busybox "$rootfs/usr/bin/$a"
  done
  ln -sf busybox "$rootfs/usr/bin/sh"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$rootfs/etc/passwd"
  echo 'root:x:0:' >"$rootfs/etc/group"
}

# import_root TAG DOCKERFILE-INSTRUCTION...: $rootfs becomes an image, marked so that it can be told from a pulled one.
import_root() {
  local tag=$1 changes=(--change 'LABEL dev.kvtier.stand-in=true') c
  shift
  for c in "$@"; do changes+=(--change "$c"); done
  tar -c -C "$rootfs" . | docker import "${changes[@]}" - "$tag" >/dev/null
}
