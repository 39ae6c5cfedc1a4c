#!/usr/bin/env bash
# A stand-in for the official Go image: this machine's toolchain, busybox and the CA bundle.   golang.sh TAG
# No C compiler and no git: it builds with CGO_ENABLED=0 and from a module proxy, which is all that deploy/Dockerfile asks.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
tag=$1
want=${tag#golang:} want=${want%%-*} # golang:1.26-bookworm -> 1.26
cd "$(dirname "${BASH_SOURCE[0]}")" # inside the module, where go picks the toolchain that go.mod asks for
goroot=$(go env GOROOT) || die "$tag: no Go toolchain on this machine"
have=$(go env GOVERSION) have=${have#go}
case $have in "$want" | "$want".*) ;; *) die "$tag: this machine's Go is $have" ;; esac

debian_install busybox-static ca-certificates
new_rootfs
mkdir -p "$rootfs"/{usr/bin,usr/lib,usr/local/go,etc/ssl/certs,tmp,root,go,proc,sys,dev}
chmod 1777 "$rootfs/tmp"
ln -s usr/bin "$rootfs/bin"
ln -s usr/lib "$rootfs/lib"
cp "$(command -v busybox)" "$rootfs/usr/bin/busybox"
for a in $(busybox --list); do [ -e "$rootfs/usr/bin/$a" ] || ln -s busybox "$rootfs/usr/bin/$a"; done
cp /etc/ssl/certs/ca-certificates.crt "$rootfs/etc/ssl/certs/"
echo 'root:x:0:0:root:/root:/bin/sh' >"$rootfs/etc/passwd"
echo 'hosts: files dns' >"$rootfs/etc/nsswitch.conf"
tar -c -C "$goroot" --exclude=./test --exclude=./doc --exclude=./pkg/obj --exclude='*_test.go' . | tar -x -C "$rootfs/usr/local/go"
import_root "$tag" 'ENV PATH=/go/bin:/usr/local/go/bin:/usr/bin:/bin' 'ENV GOPATH=/go' 'ENV GOTOOLCHAIN=local' 'WORKDIR /go'
