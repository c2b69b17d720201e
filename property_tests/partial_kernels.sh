#!/usr/bin/env bash
# Judges the small kernels of partial_kernels.c, _writers.c and _caches.c: the right ones must pass, and
# every fault must be found. Prints a row for each kind: how many cases of the whole suite the kernel
# does, how many the suite has that is drawn for it, and after how many cases each fault was found.
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
  grep -q "^[^ ]* $kind " "$work/kinds" || { echo "no kind is named '$kind'" >&2; exit 2; }
done

check() { "$assay" check --no-shrink --kernel "$work/lib$file.so" "$@" < /dev/null 2>&1 | tr "\r" "\n"; }
failed=0
echo "| kernel | suite | of the whole suite | drawn | faults, and the cases until they were found |"
echo "| --- | --- | --- | --- | --- |"
while read -r file kind suite faults; do
  [ $# -eq 0 ] || [[ " $* " == *" $kind "* ]] || continue
  export ASSAY_PARTIAL=$kind
  unset ASSAY_PARTIAL_FAULT
  drawn=$(check --suite "$suite" --list | wc -l)
  shards=1
  [ -z "${SAMPLE:-}" ] || shards=$((drawn / (SAMPLE + 1) + 1)) # a run of one case has no summary
  if ! check --suite "$suite" --shard "0/$shards" > "$work/log"; then
    cat "$work/log"
    echo "$kind is right, and was failed"
    failed=1
    continue
  fi
  whole=$(sed -n 's/^[0-9]* of \([0-9]*\) cases of the whole suite .*/\1/p' "$work/log")
  declined=$(sed -n 's/^\([0-9]*\) of [0-9]* cases of the whole suite .*/\1/p' "$work/log")
  found=
  [ "${FAULTS:-}" != none ] || faults=
  for fault in $faults; do
    export ASSAY_PARTIAL_FAULT=$fault
    status=0
    check --suite "$suite" --stop-at-first-failure > "$work/log" || status=$?
    if [ $status -ne 1 ]; then
      tail -n 5 "$work/log"
      echo "$kind: $fault was not found"
      failed=1
      continue
    fi
    found+="${found:+, }$fault $(sed -n 's/^\([0-9]*\) cases\{0,1\}: .* failed.*/\1/p' "$work/log")"
  done
  echo "| $kind | $suite | $((whole - declined)) of $whole | $drawn | $found |"
done < "$work/kinds"
exit $failed
