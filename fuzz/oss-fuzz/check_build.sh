#!/usr/bin/env bash
# check_build.sh OUT SANITIZER: the rules by which OSS-Fuzz refuses a build (its bad_build_check), for libFuzzer on x86-64. Every breach
# is named; the exit status is 1 if there is one.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
out=$(cd "$1" && pwd) sanitizer=$2
case "$sanitizer" in address | undefined) ;; *) echo "check_build.sh: SANITIZER is address or undefined, not '$sanitizer'" >&2; exit 2 ;; esac

log=$(mktemp) seeds=$(mktemp -d)
trap 'rm -rf "$log" "$seeds"' EXIT
breaches=0 targets=0
bad() { printf 'check_build: %s: %s\n' "$target" "$1"; breaches=$((breaches + 1)); }
# Calls of functions whose name begins so, in the code of the target.
calls() { grep -cE "callq?[[:space:]]+[0-9a-f]+[[:space:]]+<$1" <<<"$code" || true; }

for file in "$out"/*; do
  target=$(basename "$file")
  [ -f "$file" ] && [ -x "$file" ] && [[ "$target" != *.* ]] || continue
  grep -q LLVMFuzzerTestOneInput "$file" || continue
  targets=$((targets + 1))
  code=$(objdump -d --no-show-raw-insn "$file")
  asan=$(calls __asan) ubsan=$(calls __ubsan)
  case "$sanitizer" in
    address)
      [ "$asan" -ge 1000 ] || bad "$asan calls into the address sanitizer, at least 1000 are asked"
      [ "$ubsan" -le 200 ] || bad "$ubsan calls into the undefined sanitizer in an address build, at most 200 are allowed" ;;
    undefined)
      [ "$ubsan" -ge 168 ] || bad "$ubsan calls into the undefined sanitizer, at least 168 are asked"
      [ "$asan" -eq 0 ] || bad "$asan calls into the address sanitizer in an undefined build" ;;
  esac
  # Away from the place where it was built, as in the image of runners.
  status=0
  (cd / && env -i PATH=/usr/bin:/bin "$file" -seed=1337 -runs=4) >"$log" 2>&1 || status=$?
  grep -q 'Done 4 runs' "$log" || bad "-seed=1337 -runs=4 does not end with 'Done 4 runs' (status $status): $(tail -n 3 "$log" | tr '\n' ' ')"
  edges=$(sed -nE 's/^INFO: Loaded [0-9]+ modules? +\(([0-9]+) .*/\1/p' "$log" | head -n 1)
  [ "${edges:-0}" -ge 100 ] || bad "${edges:-0} edges are instrumented, at least 100 are asked"
  if [ -f "$file"_seed_corpus.zip ]; then
    rm -rf "$seeds/$target" && mkdir "$seeds/$target"
    unzip -q "$file"_seed_corpus.zip -d "$seeds/$target"
    [ -n "$(ls "$seeds/$target")" ] || bad "its seed corpus is empty"
    status=0
    (cd / && env -i PATH=/usr/bin:/bin "$file" -runs=0 -rss_limit_mb=2560 -timeout=25 "$seeds/$target") >"$log" 2>&1 || status=$?
    [ $status -eq 0 ] || bad "its seed corpus ends it with status $status: $(tail -n 3 "$log" | tr '\n' ' ')"
  else
    bad "it has no seed corpus ${target}_seed_corpus.zip"
  fi
  if [ -f "$file.dict" ]; then
    (cd / && "$file" -runs=0 -dict="$file.dict") >"$log" 2>&1 || bad "libFuzzer cannot read its dictionary: $(tail -n 1 "$log")"
  fi
  while read -r name arrow path _; do
    [ "$arrow" = '=>' ] || continue
    case "$path" in
      not) bad "its library $name is not found" ;;
      "$out"/lib/*) ;;
      *) [[ "$name" =~ ^(ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv|libgcc_s)\.so ]] || bad "its library $name is neither the system's nor in lib/" ;;
    esac
  done < <(ldd "$file")
  printf '%-10s %s calls into the address and %s into the undefined sanitizer, %s edges\n' "$target" "$asan" "$ubsan" "${edges:-0}"
done
[ "$targets" -gt 0 ] || { echo "check_build: no target in $out" >&2; exit 1; }
echo "$targets targets, $breaches breaches"
[ "$breaches" -eq 0 ]
