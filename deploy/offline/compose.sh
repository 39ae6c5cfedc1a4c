#!/usr/bin/env bash
# The Docker Compose v2 plugin. Bookworm packages only the retired 1.29, so this takes trixie's package, unpacked and not
# installed: its one binary needs nothing but a libc that bookworm has. Idempotent.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
docker compose version >/dev/null 2>&1 && exit 0
one_at_a_time
docker compose version >/dev/null 2>&1 && exit 0

need_root_on_debian "install the compose plugin"
debian_install debian-archive-keyring
new_rootfs
cd "$rootfs"
mkdir -p lists/partial cache/archives/partial plugin
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) trixie main" >trixie.list
# apt with its own lists and state, so that the machine's package sources stay as they are
apt=(apt-get -qq -o "Dir::Etc::SourceList=$rootfs/trixie.list" -o Dir::Etc::SourceParts=/dev/null
  -o "Dir::State::Lists=$rootfs/lists" -o "Dir::Cache=$rootfs/cache" -o Dir::State::status=/dev/null
  -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none)
"${apt[@]}" update
"${apt[@]}" download docker-compose
dpkg -x docker-compose_*.deb plugin
install -D -t /usr/libexec/docker/cli-plugins plugin/usr/libexec/docker/cli-plugins/docker-compose
say "compose $(docker compose version --short)"
