#!/usr/bin/env bash
# Brings OCI archives to the nodes of the cluster of KUBECONFIG: tests/load-image.sh [--check] ARCHIVE...
#
# How depends on the cluster. Known are kind, k3s on this machine, and nodes whose containerd sockets lie beside the
# KUBECONFIG (DIRECTORY/node/*/containerd.sock). For others LOAD is a command that is given each archive.
# --check loads nothing, and says whether there is a way.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

if [[ -z ${KUBECONFIG:-} ]]; then
  echo "load-image: KUBECONFIG is not set: which cluster is it for?" >&2
  exit 1
fi
check=false
if [[ ${1:-} == --check ]]; then
  check=true
  shift
fi

context=$(kubectl config current-context)
shopt -s nullglob
sockets=("$(dirname "$KUBECONFIG")"/node/*/containerd.sock)
if [[ -n ${LOAD:-} ]]; then
  load() { bash -c "$LOAD \"\$1\"" load "$1"; }
elif [[ $context == kind-* ]]; then
  load() { kind load image-archive --name "${context#kind-}" "$1"; }
elif [[ ${#sockets[@]} -gt 0 ]]; then
  load() {
    for socket in "${sockets[@]}"; do
      ctr --address "$socket" --namespace k8s.io images import --snapshotter overlayfs "$1"
    done
  }
elif [[ $KUBECONFIG == */k3s.yaml ]]; then
  load() { k3s ctr images import "$1"; }
else
  cat >&2 <<EOF
load-image: how the nodes of context $context take images is not known. Set LOAD to a command that is given an OCI
archive, such as LOAD='kind load image-archive --name NAME'; or push the image to a registry.
EOF
  exit 1
fi
$check || for archive in "$@"; do load "$archive"; done
