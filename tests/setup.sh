#!/usr/bin/env bash
# Installs the Debian packages that building (group `build`) or the lab (group `lab`: demo, end-to-end
# tests, benchmark) needs. Installs nothing that is there, starts no service, and leaves none enabled
# that it brought.
#
#   tests/setup.sh [--check] [build|lab]...      no group: both
#
# --check changes nothing: it exits with 1 and names what is missing.
set -euo pipefail

# A C compiler for `ring` and as the linker; libnftnl and libmnl for the capture rules.
build_packages=(gcc libc6-dev pkg-config libnftnl-dev libmnl-dev)
# What runs in the lab's pods, and what the tests look with.
lab_packages=(
  iproute2 nftables util-linux curl iperf3 sockperf wrk nginx-light libnginx-mod-stream redis-server
  redis-tools postgresql haproxy openssh-server openssh-client
)
# The service that a package would start and enable, and the process that would then run.
declare -A units=(
  [nginx-light]=nginx [redis-server]=redis-server [postgresql]=postgresql [haproxy]=haproxy
  [openssh-server]=ssh
)
daemons='nginx|redis-server|postgres|haproxy|sshd'

fail() {
  echo "setup: $*" >&2
  exit 1
}

check_only=false
groups=()
for argument in "$@"; do
  case $argument in
    --check) check_only=true ;;
    build | lab) groups+=("$argument") ;;
    *) fail "unknown argument '$argument'; usage: tests/setup.sh [--check] [build|lab]..." ;;
  esac
done
[[ ${#groups[@]} -gt 0 ]] || groups=(build lab)

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

# Names of the daemons that run, one line each; `pgrep` may not be there.
running() {
  cat /proc/[0-9]*/comm 2>/dev/null | grep -xE "$daemons" || true
}

mapfile -t missing < <(missing_of "${wanted[@]}")
if [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
fi
if $check_only; then
  echo "missing packages: ${missing[*]} (\`make setup\` installs them)" >&2
  exit 1
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || fail "packages are missing (${missing[*]}) and only root can install them"
  as_root=(sudo)
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
