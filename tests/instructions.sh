#!/usr/bin/env bash
# Instructions that a turn of each case of `make bench-micro` takes, by callgrind: the difference
# between many turns and few. Unlike times they are the same from run to run.
#
#   tests/instructions.sh BENCH-PROGRAM
set -euo pipefail
few=200 many=2200

count() {
  MICRO_CASE=$1 MICRO_TURNS=$2 valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" 2>&1 |
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

program=${1:?the bench program of cargo}
command -v valgrind >/dev/null || { echo "valgrind is missing (Debian: valgrind)" >&2; exit 1; }
mapfile -t names < <(MICRO_CASE=names "$program")
printf '%14s  %s\n' instructions 'a turn of'
for number in "${!names[@]}"; do
  first=$(count "$number" $few)
  second=$(count "$number" $many)
  printf '%14d  %s\n' $(((second - first) / (many - few))) "${names[number]}"
done
