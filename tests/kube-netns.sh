#!/bin/sh
# Runs a program in a network namespace of its own, where a control plane can have fixed ports and the webhook's
# endpoints addresses that are not loopback: tests/kube-netns.sh PROGRAM [ARGUMENT]...
set -eu

if [ "${1:-}" != --inside ]; then
  if [ "$(id -u)" = 0 ]; then
    exec unshare --net -- "$0" --inside "$@"
  fi
  exec unshare --user --map-root-user --net -- "$0" --inside "$@"
fi
shift
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up
for last in 1 2 3 10; do
  ip address add "10.97.0.$last/32" dev lo
done
export RDMESH_TEST_NETNS=1
exec "$@"
