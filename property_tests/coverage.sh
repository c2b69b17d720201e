#!/usr/bin/env bash
# coverage.sh BUILD [CTEST ARGUMENTS]: runs the tests of a build of the preset coverage, prints what they reach of each room, and writes
# BUILD/unreached.txt: the lines of kernels/ and oracle/ that no test reaches, a line that several SIMD targets compile being reached by any.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "$1" && pwd)
shift

profiles=$build/profiles
rm -rf "$profiles"
mkdir -p "$profiles"
failed=0
# %c: counts are kept in the file while the program runs; %m: one file for a program, whatever number of times it runs.
LLVM_PROFILE_FILE="$profiles/%c%m.profraw" ctest --test-dir "$build" --no-tests=error --output-on-failure -j "$(nproc)" "$@" || failed=1
llvm-profdata-19 merge -sparse -o "$build/tests.profdata" "$profiles"/*.profraw

objects=()
while IFS= read -r file; do
  objects+=(-object "$file")
done < <(find "$build" -path "$build/CMakeFiles" -prune -o -type f \( -perm -u+x -o -name '*.so' \) -print | while IFS= read -r file; do
  if grep -q __llvm_covmap <<<"$(readelf -SW "$file" 2>/dev/null)"; then printf '%s\n' "$file"; fi
done)
[ ${#objects[@]} -gt 0 ] || { echo "coverage: no program of $build was built for it" >&2; exit 3; }

llvm-cov-19 export -format=lcov -instr-profile="$build/tests.profdata" "${objects[@]}" >"$build/tests.lcov"

# A line of code is counted once, for the file it stands in.
awk -v source="$source/" -v unreached="$build/unreached.txt" '
  /^SF:/ { file = substr($0, 4); inside = index(file, source) == 1; file = substr(file, length(source) + 1); room = file; sub("/.*", "", room) }
  /^DA:/ && inside && room != "build" {
    split(substr($0, 4), at, ",")
    key = file ":" at[1]
    if (!(key in count)) { keys[++n] = key; count[key] = 0; lines[room]++ }
    if (at[2] > 0 && count[key] == 0) { count[key] = 1; reached[room]++ }
  }
  END {
    printf "%-16s %8s %8s %8s\n", "room", "lines", "reached", "share"
    for (room in lines) { printf "%-16s %8d %8d %7.1f%%\n", room, lines[room], reached[room], 100 * reached[room] / lines[room] | "sort"; all += lines[room]; hit += reached[room] }
    close("sort")
    printf "%-16s %8d %8d %7.1f%%\n", "all", all, hit, 100 * hit / all
    for (k = 1; k <= n; k++) if (count[keys[k]] == 0 && keys[k] ~ /^(kernels|oracle)\//) { print keys[k] >unreached; missing++ }
    printf "%d lines of kernels/ and oracle/ are reached by no test: %s\n", missing, unreached
    if (!missing) printf "" >unreached
  }' "$build/tests.lcov"
exit $failed
