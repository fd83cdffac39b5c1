#!/usr/bin/env bash
# Makes an OCI archive without a daemon: tests/image.sh DIRECTORY_OF_BINARIES ARCHIVE NAME:TAG
#
# One layer: the programs, the libraries that they are linked with, what rdma-core loads by name, and nothing
# else. Load it with `ctr images import`, `podman load` or `skopeo copy oci-archive:...`.
set -euo pipefail

binaries=$1
archive=$2
name=$3
programs=(rdmesh-proxy rdmesh-injector)
# The drivers of RDMA devices are asked for by name at run time, and so are not in `ldd`'s list.
shopt -s nullglob
drivers=(/etc/libibverbs.d/*.driver)
providers=(/usr/lib/*/libibverbs/*.so)

for tool in setcap ldd strip; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || {
    echo "image: $tool is missing (Debian: libcap2-bin, binutils)" >&2
    exit 1
  }
done
[[ $(id -u) -eq 0 ]] || {
  echo "image: file capabilities can only be set by root: run as root" >&2
  exit 1
}
export PATH=$PATH:/usr/sbin:/sbin

if ldd "$binaries/rdmesh-proxy" | grep -q libibverbs && [[ ${#providers[@]} -eq 0 ]]; then
  echo "image: $binaries/rdmesh-proxy speaks RDMA, and no driver is here (Debian: ibverbs-providers)" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{usr/bin,etc,tmp,run,var}
for link in bin lib lib64 sbin; do
  ln -s "usr/$link" "$root/$link"
done
mkdir -p "$root"/usr/{lib,lib64,sbin}
if [[ ${#drivers[@]} -gt 0 ]]; then
  install -D -m 644 -t "$root/etc/libibverbs.d" "${drivers[@]}"
fi

for program in "${programs[@]}"; do
  install -m 755 "$binaries/$program" "$root/usr/bin/"
  strip "$root/usr/bin/$program"
done
{
  for program in "${programs[@]}"; do ldd "$root/usr/bin/$program"; done
  for provider in "${providers[@]}"; do
    echo "$provider"
    ldd "$provider"
  done
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

"$(dirname "$0")/oci.sh" "$root" "$archive" "$name" '{
  "User": "15701:15701", "Env": ["PATH=/usr/bin"], "Cmd": ["rdmesh-proxy", "--help"]
}'
