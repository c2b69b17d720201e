#!/usr/bin/env bash
# Judges the small kernels of partial_kernels.c, _writers.c and _caches.c: the right ones must pass, and
# every fault must be found. Prints the table of docs/kernels.md, a row for each kind: how many cases of
# the whole suite the kernel does, how many the suite has that is drawn for it, how many of its faults
# were found, and after how many cases each was. `./dev partial` calls it.
#   partial_kernels.sh ASSAY SOURCE [KIND...]    all kinds, if none is named
# With SAMPLE=N in the environment a right kernel is judged on about N cases of its suite, and with
# FAULTS=none no fault is tried.
set -euo pipefail
assay=$1 source=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-std=gnu11 -O2 -ffp-contract=off "-I$source/include")
for file in partial_kernels partial_writers partial_caches; do
  "${CC:-cc}" "${flags[@]}" -DLIST -o "$work/list" "$source/property_tests/$file.c"
  "${CC:-cc}" "${flags[@]}" -shared -fPIC -o "$work/lib$file.so" "$source/property_tests/$file.c" -lm
  "$work/list" | sed "s/^/$file /" >> "$work/kinds"
done
for kind in "$@"; do
  grep -q "^[^ ]* $kind " "$work/kinds" || { echo "no kind is named '$kind'; there are: $(cut -d ' ' -f 2 "$work/kinds" | paste -sd ' ')" >&2; exit 2; }
done

check() { "$assay" check --no-shrink --kernel "$work/lib$file.so" "$@" < /dev/null 2>&1 | tr "\r" "\n"; }
# What went wrong is told at once, and not in the table.
failed=0 kinds=0 tried=0 found=0
complain() {
  "$1" "$work/log" >&2
  echo "$2" >&2
  failed=1
}
all_of() { cat "$1"; }
end_of() { tail -n 5 "$1"; }
echo "| kernel | suite | cases of the whole suite that it does | cases drawn for it | faults found | each after how many cases |"
echo "| --- | --- | --- | --- | --- | --- |"
while read -r file kind suite faults; do
  [ $# -eq 0 ] || [[ " $* " == *" $kind "* ]] || continue
  export ASSAY_PARTIAL=$kind
  unset ASSAY_PARTIAL_FAULT
  kinds=$((kinds + 1))
  drawn=$(check --suite "$suite" --list | wc -l)
  shards=1
  [ -z "${SAMPLE:-}" ] || shards=$((drawn / (SAMPLE + 1) + 1)) # a run of one case has no summary
  if ! check --suite "$suite" --shard "0/$shards" > "$work/log"; then
    complain all_of "$kind is right, and was failed"
    continue
  fi
  whole=$(sed -n 's/.*; of the \([0-9]*\) cases* for one that does everything, .*/\1/p' "$work/log")
  declined=$(sed -n 's/.* for one that does everything, \([0-9]*\) needs* what .*/\1/p' "$work/log")
  after= of_kind=0 of_kind_found=0
  [ "${FAULTS:-}" != none ] || faults=
  for fault in $faults; do
    export ASSAY_PARTIAL_FAULT=$fault
    status=0
    of_kind=$((of_kind + 1))
    check --suite "$suite" --stop-at-first-failure > "$work/log" || status=$?
    if [ $status -ne 1 ]; then
      complain end_of "$kind: $fault was not found"
      continue
    fi
    of_kind_found=$((of_kind_found + 1))
    after+="${after:+, }$fault $(sed -n 's/^\([0-9]*\) cases\{0,1\}: .* failed.*/\1/p' "$work/log")"
  done
  tried=$((tried + of_kind)) found=$((found + of_kind_found))
  echo "| $kind | $suite | $((whole - declined)) of $whole | $drawn | $of_kind_found of $of_kind | $after |"
done < "$work/kinds"
echo
echo "$kinds kinds, $found of $tried faults found"
exit $failed
