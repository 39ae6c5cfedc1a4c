#!/usr/bin/env bash
# A stand-in for llama.cpp's server image, from Debian packages: llama-server with all CPU back ends.   llama.sh TAG
# Debian packages current versions in sid only.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
tag=$1
new_rootfs
unpack_suite sid llama.cpp-tools
slim_root
# where a host and a port are not given, the official image listens to everyone in its network, on 8080
import_root "$tag" 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  'ENV LLAMA_ARG_HOST=0.0.0.0' 'ENV LLAMA_ARG_PORT=8080' 'EXPOSE 8080' 'ENTRYPOINT ["llama-server"]'
