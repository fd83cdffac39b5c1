#!/usr/bin/env bash
# Installs the Debian packages that building (group `build`), the chart's tests (group `chart`), the
# lab (group `lab`: demo, end-to-end tests, benchmark), the guests (group `guest`: the Soft-RoCE lab),
# the image (group `image`), the tests in a cluster (group `cluster`: what runs in its pods) or the
# counting of instructions (group `bench`) need.
# Installs nothing that is there, starts no service, and leaves none enabled that it brought. The
# guests' kernel is downloaded and unpacked to target/guest/kernel, not installed. So is the one of
# backports (group `smc`: the comparison with SMC-R), to target/guest/kernel-smc; the machine's own
# sources of packages stay as they are.
#
#   tests/setup.sh [--check] [build|chart|lab|guest|image|cluster|bench|smc]...   no group: all but smc
#
# --check changes nothing: it exits with 1 and names what is missing.
set -euo pipefail

# A C compiler for AWS-LC and as the linker; libnftnl and libmnl for the capture rules; the verbs
# library, and the libclang (14, not another) that makes its Rust declarations.
build_packages=(
  gcc libc6-dev pkg-config libnftnl-dev libmnl-dev libibverbs-dev librdmacm-dev libclang-14-dev
)
# What runs in the lab's pods, and what the tests look with.
lab_packages=(
  iproute2 nftables util-linux curl iperf3 sockperf wrk nginx-light libnginx-mod-stream redis-server
  redis-tools postgresql haproxy openssh-server openssh-client prometheus
)
# `promtool`, which judges alerts and metrics.
chart_packages=(prometheus)
# Emulator, initial file system, and what looks at RDMA devices inside.
guest_packages=(
  qemu-system-x86 busybox-static kmod cpio util-linux rdma-core ibverbs-utils perftest rdmacm-utils tcpdump
)
# What packs images, and the drivers of RDMA devices, which go into one.
image_packages=(binutils ibverbs-providers jq libcap2-bin)
# What runs in the pods; Debian's Prometheus is used without its service.
cluster_packages=(busybox-static curl dnsmasq-base jq nftables nginx-light prometheus)
# What counts instructions.
bench_packages=(valgrind)
# What checks the signature of backports.
smc_packages=(debian-archive-keyring)
kernel_dir=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/guest/kernel
backports='http://deb.debian.org/debian bookworm-backports main'
# The service that a package would start and enable, and the process that would then run.
declare -A units=(
  [nginx-light]=nginx [redis-server]=redis-server [postgresql]=postgresql [haproxy]=haproxy
  [openssh-server]=ssh [prometheus]=prometheus
)
daemons='nginx|redis-server|postgres|haproxy|sshd|prometheus'

fail() {
  echo "setup: $*" >&2
  exit 1
}

check_only=false
groups=()
for argument in "$@"; do
  case $argument in
    --check) check_only=true ;;
    build | chart | lab | guest | image | cluster | bench | smc) groups+=("$argument") ;;
    *) fail "unknown argument '$argument'; usage: tests/setup.sh [--check] [build|chart|lab|guest|image|cluster|bench|smc]..." ;;
  esac
done
[[ ${#groups[@]} -gt 0 ]] || groups=(build chart lab guest image cluster bench)

wanted=()
for group in "${groups[@]}"; do
  declare -n packages="${group}_packages"
  wanted+=("${packages[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  fail "this is no Debian system; install the equivalents of these by hand: ${wanted[*]}"
fi

missing_of() {
  local installed package
  installed=" $(dpkg-query -W -f='${db:Status-Status}:${Package} ' "$@" 2>/dev/null || true)"
  for package in "$@"; do
    [[ $installed == *" installed:$package "* ]] || echo "$package"
  done
}

# Which of the guests' kernels are wanted and not there: names of groups, a line each.
missing_kernels() {
  local group
  for group in guest smc; do
    if [[ " ${groups[*]} " == *" $group "* ]] && ! compgen -G "$(dir_of "$group")/boot/vmlinuz-*" >/dev/null; then
      echo "$group"
    fi
  done
}

dir_of() {
  case $1 in
    guest) echo "$kernel_dir" ;;
    smc) echo "$kernel_dir-smc" ;;
  esac
}

# The kernel that Debian's metapackage stands for, with its modules; unpacked beside and renamed, lest
# half of one is taken for a whole. What follows the folder goes to apt.
fetch_kernel() {
  local dir new package
  dir=$1
  shift
  new=$dir.new
  rm -rf "$new" "$dir"
  mkdir -p "$new"
  package=$(apt-cache "$@" depends linux-image-amd64 | sed -n 's/^ *Depends: *//p' | head -n 1)
  [[ -n $package ]] || fail "apt does not know linux-image-amd64: the guests need an amd64 Debian"
  echo "fetching: $package, for the guests"
  (cd "$new" && apt-get "$@" download --quiet=2 "$package") || return 1
  dpkg-deb -x "$new"/*.deb "$new"
  rm -rf "$new"/*.deb "$new/usr"
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$new" "$(ls "$new/lib/modules")"
  mv "$new" "$dir"
}

# The same from backports. Lists and sources are in a folder of their own: nothing of the machine's is
# changed, and no root is needed.
fetch_backports_kernel() {
  local apt dir options
  dir=$1
  mkdir -p "$dir.apt/lists/partial" "$dir.apt/cache"
  apt=$(cd "$dir.apt" && pwd)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $backports" >"$apt/sources.list"
  options=(
    -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=$(id -un)"
  )
  apt-get "${options[@]}" update --quiet=2 || return 1
  fetch_kernel "$dir" "${options[@]}" || return 1
  rm -rf "$apt"
}

# Names of the daemons that run, one line each; `pgrep` may not be there.
running() {
  cat /proc/[0-9]*/comm 2>/dev/null | grep -xE "$daemons" || true
}

mapfile -t missing < <(missing_of "${wanted[@]}")
if $check_only; then
  status=0
  if [[ ${#missing[@]} -gt 0 ]]; then
    echo "missing packages: ${missing[*]} (\`make setup\` installs them)" >&2
    status=1
  fi
  for group in $(missing_kernels); do
    echo "missing: the guests' kernel in $(dir_of "$group") (\`tests/setup.sh $group\` fetches it)" >&2
    status=1
  done
  exit "$status"
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if [[ ${#missing[@]} -gt 0 ]] && ! command -v sudo >/dev/null; then
    fail "packages are missing (${missing[*]}) and only root can install them"
  fi
  as_root=(sudo)
fi

finish() {
  local group dir
  for group in $(missing_kernels); do
    dir=$(dir_of "$group")
    case $group in
      guest)
        fetch_kernel "$dir" 2>/dev/null || {
          "${as_root[@]}" apt-get update --quiet=2
          fetch_kernel "$dir" || fail "the guests' kernel could not be fetched"
        }
        ;;
      smc) fetch_backports_kernel "$dir" || fail "the kernel of backports could not be fetched" ;;
    esac
  done
  exit 0
}
if [[ ${#missing[@]} -eq 0 ]]; then
  finish
fi

echo "installing: ${missing[*]}"
running_before=$(running | wc -l)

# Debian starts a service as soon as it is installed, unless this program says no.
guard=/usr/sbin/policy-rc.d
if [[ ! -e $guard ]]; then
  trap '"${as_root[@]}" rm -f "$guard"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$guard"
fi

install_missing() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --yes --no-install-recommends --quiet=2 "${missing[@]}"
}
# The package lists may be absent or old; only then are they worth fetching.
install_missing 2>/dev/null || {
  "${as_root[@]}" apt-get update --quiet=2
  install_missing
}

# Nor at the next boot: what was not here before is not enabled now.
if [[ -d /run/systemd/system ]]; then
  for package in "${missing[@]}"; do
    [[ -z ${units[$package]:-} ]] || "${as_root[@]}" systemctl disable --quiet "${units[$package]}"
  done
fi

if [[ $(running | wc -l) -gt $running_before ]]; then
  fail "the installation started a service: $(running | sort -u | tr '\n' ' ')"
fi
mapfile -t missing < <(missing_of "${wanted[@]}")
[[ ${#missing[@]} -eq 0 ]] || fail "still missing after the installation: ${missing[*]}"
finish
