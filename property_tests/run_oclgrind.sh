#!/usr/bin/env bash
# The OpenCL kernels under oclgrind, a simulator that reports data races and accesses out of bounds.
#   run_oclgrind.sh suite ASSAY SHARD       the suite `tiny` passes, and nothing is reported
#   run_oclgrind.sh control OCLGRIND_CONTROL  every planted mistake is reported, and nothing without one
set -euo pipefail
mode=$1 program=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

driver=$(ls /usr/lib/oclgrind/liboclgrind-rt-icd.so /usr/lib/*/oclgrind/liboclgrind-rt-icd.so 2>/dev/null | head -n 1 || true)
if [ -z "$driver" ]; then
  # ./dev names what this release of the system has no package of.
  case " ${ASSAY_LACKING:-} " in *" oclgrind "*) echo "this release has no package oclgrind"; exit 77 ;; esac
  echo "oclgrind is not installed (Debian's package oclgrind)" >&2
  exit 1
fi
mkdir "$work/vendors"
echo "$driver" > "$work/vendors/oclgrind.icd"
export OCL_ICD_VENDORS=$work/vendors OCLGRIND_DATA_RACES=1 OCLGRIND_LOG=$work/log

if [ "$mode" = suite ]; then
  "$program" check --device opencl:oclgrind --suite tiny --in-process --shard "$3" --no-shrink
  if [ -s "$work/log" ]; then cat "$work/log" >&2; echo "oclgrind reported the above" >&2; exit 1; fi
  exit 0
fi

"$program" none
if [ -s "$work/log" ]; then cat "$work/log" >&2; echo "reported without a mistake" >&2; exit 1; fi
found=0 missed=()
for mistake in $("$program" list); do
  rm -f "$work/log"
  "$program" "$mistake" || { echo "$mistake did not run" >&2; exit 1; }
  case "$mistake" in
    *-without-barrier-*) wanted='data race' ;;
    *-written) wanted='Invalid write' ;;
    *) wanted='Invalid read' ;;
  esac
  if grep -q "$wanted" "$work/log"; then found=$((found + 1)); else missed+=("$mistake"); fi
done
echo "$found mistakes found${missed[*]:+, missed: ${missed[*]}}"
[ ${#missed[@]} -eq 0 ] && [ "$found" -gt 10 ]
