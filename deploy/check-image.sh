#!/usr/bin/env bash
# What deploy/Dockerfile promises, on the image it builds: small, static, not root, nothing in it but the binary and the certificates, labels, a
# health check of its own, and the same binary as the one that this machine builds from the same source. Needs Docker and Go.
#
#   IMAGE=kvtier:check    under which name; it is left behind for a closer look
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=${IMAGE:-kvtier:check} version=v0.0.0-check
work=$(mktemp -d)
container=
finish() { rm -rf "$work"; [ -z "$container" ] || docker rm -f "$container" >/dev/null; }
trap finish EXIT
say() { echo "image: $*"; }
failed=0
want() { # want WHAT EXPECTED FOUND
  [ "$2" = "$3" ] || { say "$1 is $3, want $2"; failed=1; }
}

DOCKER_BUILDKIT=1 docker build -q -f deploy/Dockerfile -t "$image" --build-arg "GOPROXY=${GOPROXY:-$(go env GOPROXY)}" \
  --build-arg "VERSION=$version" --build-arg REVISION=abc . >/dev/null
inspect() { docker image inspect "$image" --format "$1"; }
want user 65532:65532 "$(inspect '{{.Config.User}}')"
want entrypoint '[/kvtier]' "$(inspect '{{.Config.Entrypoint}}')"
for label in title description source licenses version revision; do
  [ -n "$(inspect "{{index .Config.Labels \"org.opencontainers.image.$label\"}}")" ] || { say "no label $label"; failed=1; }
done
size=$(inspect '{{.Size}}')
[ "$size" -lt 40000000 ] || { say "$size bytes, want less than 40 MB"; failed=1; }

container=$(docker create "$image")
docker export "$container" >"$work/root.tar"
# what the engine itself puts into every container is left out
files=$(tar -tf "$work/root.tar" | grep -v '/$' | grep -vxE 'dev/console|etc/(hosts|hostname|mtab|resolv\.conf)|\.dockerenv' | sort | tr '\n' ' ')
want files 'etc/ssl/certs/ca-certificates.crt kvtier ' "$files"
tar -xf "$work/root.tar" -C "$work" kvtier
want 'result of kvtier version' "kvtier $version" "$(docker run --rm --read-only --cap-drop ALL --network none "$image" version | cut -d' ' -f1-2)"
docker run --rm --read-only "$image" healthcheck --url http://127.0.0.1:1/readyz >/dev/null 2>&1 && { say "the health check of nothing succeeds"; failed=1; }

# The same source, the same binary: built here and in the container, at other paths and with other caches.
build() { # build ARCH FILE
  CGO_ENABLED=0 GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$version" -o "$2" ./cmd/kvtier
}
build "$(go env GOARCH)" "$work/here"
theirs=$(go version "$work/kvtier" | sed 's/.*: //') mine=$(go version "$work/here" | sed 's/.*: //')
if [ "$theirs" = "$mine" ]; then
  want 'digest of the binary in the image' "$(sha256sum <"$work/here")" "$(sha256sum <"$work/kvtier")"
else
  say "not compared with a build of this machine: the image has $theirs, this machine $mine"
fi
for arch in amd64 arm64; do build "$arch" "$work/$arch" || failed=1; done
[ "$failed" = 0 ] || exit 1
say "$((size / 1000000)) MB, $(stat -c %s "$work/kvtier") bytes of them the binary with both shipped checkpoints; sha256 $(sha256sum <"$work/kvtier" | cut -c1-16)… here and in the image; builds for amd64 and arm64"
