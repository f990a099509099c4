#!/bin/sh
# Makes an OCI image without an engine and without a registry (umoci: apt install umoci):
#     image.sh ROOTFS LAYOUT [TAG]
# `skopeo copy oci:LAYOUT:TAG docker-archive:oinetd.tar` makes a file for `docker load` and `podman load`.
set -eu
rootfs=$1 layout=$2 tag=${3:-latest}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umoci init --layout "$layout"
umoci new --image "$layout:$tag"
umoci unpack --image "$layout:$tag" "$work/bundle"
cp -a "$rootfs/." "$work/bundle/rootfs/"
umoci repack --image "$layout:$tag" "$work/bundle"
# OCI has no HEALTHCHECK: whoever runs the image is told `oinetd health` (Kubernetes: deploy/kubernetes).
umoci config --image "$layout:$tag" --config.user 65532:65532 --config.entrypoint /usr/bin/oinetd --config.cmd -f \
  --config.env XDG_RUNTIME_DIR=/run \
  --config.stopsignal SIGTERM --config.label org.opencontainers.image.title=oinetd
umoci gc --layout "$layout"
