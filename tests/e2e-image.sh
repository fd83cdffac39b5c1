#!/usr/bin/env bash
# Packs what runs in the pods of `make e2e-kube` as an OCI archive: tests/e2e-image.sh ARCHIVE NAME:TAG PROGRAM...
#
# The programs are those of this machine, with their libraries; busybox gives the shell.
set -euo pipefail

archive=$1
name=$2
shift 2
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{etc,tmp,run,var/lib/nginx,var/log/nginx} "$root"/usr/{bin,lib,lib64,sbin}
for link in bin lib lib64 sbin; do
  ln -s "usr/$link" "$root/$link"
done
for tool in busybox "$@"; do
  path=$(command -v "$tool") || {
    echo "e2e-image: $tool is missing (\`make setup\` brings it)" >&2
    exit 1
  }
  path=$(realpath "$path")
  install -m 755 "$path" "$root/usr/bin/$(basename "$tool")"
  strip "$root/usr/bin/$(basename "$tool")" 2>/dev/null || true
  # A static program has no list.
  { ldd "$path" 2>/dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r library; do
    target=$(realpath -ms "$library")
    [[ $target == /usr/* ]] || target=/usr$target
    install -D -m 755 "$(realpath "$library")" "$root$target"
  done
done
for library in /lib/*/libnss_{dns,files}.so.2 /lib/*/libresolv.so.2; do
  install -D -m 755 "$(realpath "$library")" "$root/usr$library"
done
"$root/usr/bin/busybox" --list | while read -r applet; do
  [[ -e $root/usr/bin/$applet ]] || ln -s busybox "$root/usr/bin/$applet"
done
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
chmod 1777 "$root"/{tmp,run,var/lib/nginx,var/log/nginx}
"$(dirname "$0")/oci.sh" "$root" "$archive" "$name" '{"User": "65534:65534", "Env": ["PATH=/usr/bin"], "Cmd": ["sh"]}'
