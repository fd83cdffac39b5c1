#!/usr/bin/env bash
# Packs a directory as an OCI archive of one layer: tests/oci.sh ROOT ARCHIVE NAME:TAG CONFIG
#
# CONFIG is the `config` object of the image as JSON. Files belong to root; their modes and capabilities are kept.
set -euo pipefail

root=$1
archive=$2
name=$3
image_config=$4

for tool in jq tar gzip sha256sum; do
  command -v "$tool" >/dev/null || {
    echo "image: $tool is missing (Debian: $tool)" >&2
    exit 1
  }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

blobs=$work/oci/blobs/sha256
mkdir -p "$blobs"
# Always the same bytes for the same files.
tar --create --file "$work/layer" --directory "$root" --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 \
  --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime \
  --xattrs --xattrs-include=security.capability .
digest_of() { sha256sum "$1" | cut -d' ' -f1; }
diff_id=$(digest_of "$work/layer")
gzip --no-name "$work/layer"
add() { # FILE: into the blobs; prints `"digest": ..., "size": ...`
  local digest
  digest=$(digest_of "$1")
  cp "$1" "$blobs/$digest"
  jq -n --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$1")" '{digest: $digest, size: $size}'
}
case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
layer=$(add "$work/layer.gz")
jq -n --arg diff "sha256:$diff_id" --arg architecture "$architecture" --argjson config "$image_config" '{
  architecture: $architecture, os: "linux", config: $config,
  rootfs: {type: "layers", diff_ids: [$diff]}
}' >"$work/config"
config=$(add "$work/config")
jq -n --argjson config "$config" --argjson layer "$layer" '{
  schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
  config: ($config + {mediaType: "application/vnd.oci.image.config.v1+json"}),
  layers: [$layer + {mediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}]
}' >"$work/manifest"
manifest=$(add "$work/manifest")
jq -n --argjson manifest "$manifest" --arg name "$name" '{
  schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
  manifests: [$manifest + {
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $name}
  }]
}' >"$work/oci/index.json"
printf '{"imageLayoutVersion": "1.0.0"}' >"$work/oci/oci-layout"
tar --create --file "$archive" --directory "$work/oci" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner .
echo "image: $name is in $archive, $(($(stat -c %s "$archive") >> 20)) MiB"
