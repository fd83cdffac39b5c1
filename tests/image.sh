#!/usr/bin/env bash
# Makes an OCI archive without a daemon: tests/image.sh DIRECTORY_OF_BINARIES ARCHIVE NAME:TAG
#
# One layer: the programs, the libraries that they are linked with, and nothing else. Load it with
# `ctr images import`, `podman load` or `skopeo copy oci-archive:...`.
set -euo pipefail

binaries=$1
archive=$2
name=$3
programs=(rdmesh-proxy rdmesh-injector)
# What is asked for by name at run time, and so not in `ldd`'s list.
providers=()

for tool in setcap jq tar sha256sum ldd; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || {
    echo "image: $tool is missing (Debian: libcap2-bin, jq)" >&2
    exit 1
  }
done
[[ $(id -u) -eq 0 ]] || {
  echo "image: file capabilities can only be set by root: run as root" >&2
  exit 1
}
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{usr/bin,etc,tmp,run,var}
for link in bin lib lib64 sbin; do
  ln -s "usr/$link" "$root/$link"
done
mkdir -p "$root"/usr/{lib,lib64,sbin}

for program in "${programs[@]}"; do
  install -m 755 "$binaries/$program" "$root/usr/bin/"
  strip "$root/usr/bin/$program"
done
{
  for program in "${programs[@]}"; do ldd "$root/usr/bin/$program"; done
  for provider in "${providers[@]}"; do ldd "$provider"; done
} | grep -oE '/[^ ]+' | sort -u | while read -r library; do
  # Where the loader looks, on a system with the directories merged into /usr.
  target=$(realpath -ms "$library")
  [[ $target == /usr/* ]] || target=/usr$target
  install -D -m 755 "$(realpath "$library")" "$root$target"
done
# The sidecar runs as a user other than root, who has only what the file permits.
setcap cap_net_raw=p "$root/usr/bin/rdmesh-proxy"
printf 'root:x:0:0::/:/\nrdmesh:x:15701:15701::/:/\n' >"$root/etc/passwd"
printf 'root:x:0:\nrdmesh:x:15701:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
chmod 1777 "$root/tmp"

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
jq -n --arg diff "sha256:$diff_id" --arg architecture "$architecture" '{
  architecture: $architecture, os: "linux",
  config: {User: "15701:15701", Env: ["PATH=/usr/bin"], Cmd: ["rdmesh-proxy", "--help"]},
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
