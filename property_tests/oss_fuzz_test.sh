#!/usr/bin/env bash
# oss_fuzz_test.sh CHECK_BUILD WORK: the rules by which a fuzzing service refuses a build, on small targets: one that keeps them all, and one for
# each rule that breaks it.
set -euo pipefail
check=$1 work=$2
fail() { printf 'oss_fuzz_test: %s\n' "$*" >&2; exit 1; }
for tool in clang++-19 zip unzip objdump; do
  command -v "$tool" >/dev/null || { echo "skipped: this machine has no $tool"; exit 0; }
done

rm -rf "$work"
mkdir -p "$work"
cd "$work"
# More than a thousand reads and as many branches, so that every rule has enough to count.
cat >toy.cc <<'C'
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
extern "C" int helped();
static volatile int table[64];
static int sum;
#define FOUR(x) x x x x
#define STEP if (table[i & 63] > data[i]) sum += table[(i * i) & 63]; ++i;
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
#ifdef CRASHES
  if (size == 4 && std::memcmp(data, "seed", 4) == 0) std::abort();
#endif
#ifdef CRASHES_AT_ONCE
  std::abort();
#endif
#ifdef HAS_LIBRARY
  if (helped() != 1) std::abort();
#endif
  if (size < 512) return 0;
  int i = 0;
  FOUR(FOUR(FOUR(FOUR(STEP))))
  FOUR(FOUR(FOUR(FOUR(STEP))))
  return sum > 0 ? 0 : -1;
}
C
printf 'extern "C" int helped() { return 1; }\n' >help.cc
clang++-19 -shared -fPIC help.cc -o libhelp.so
printf seed >seed
flags=(-O1 -gline-tables-only)
address=(-fsanitize=address -fsanitize=fuzzer)

# Makes the target `name` of a build by compiling the toy with what follows.
target() {
  local name=$1; shift
  mkdir -p "$name/lib"
  clang++-19 "${flags[@]}" toy.cc -o "$name/toy" -Wl,--disable-new-dtags,-rpath,'$ORIGIN/lib' "$@" &
}
target right "${address[@]}"
target unsanitized -fsanitize=fuzzer
target both "${address[@]}" -fsanitize=undefined
target undefined -fsanitize=undefined -fsanitize=fuzzer
target crashing "${address[@]}" -DCRASHES
target dying "${address[@]}" -DCRASHES_AT_ONCE
target linked "${address[@]}" -DHAS_LIBRARY -L. -lhelp
target lost "${address[@]}" -DHAS_LIBRARY -L. -lhelp
wait
# Instrumented by the address sanitizer alone: the engine sees no edges.
mkdir -p blind/lib
clang++-19 "${flags[@]}" -c -fsanitize=address toy.cc -o blind.o
clang++-19 -fsanitize=address -fsanitize=fuzzer blind.o -o blind/toy
for build in */; do (cd "$build" && zip -q toy_seed_corpus.zip -j ../seed); done
# The C++ library of the engine goes with each target, as build.sh does it.
for build in */; do
  ldd "$build/toy" | awk '$1 ~ /^libstdc/ {print $3}' | xargs -r -I{} cp -L {} "$build/lib/"
done
cp libhelp.so linked/lib/
cp -r right unseeded && rm unseeded/toy_seed_corpus.zip
cp -r right unread && printf 'no dictionary\n' >unread/toy.dict
mkdir -p empty

passes() { "$check" "$1" "$2" >log 2>&1 || fail "$1 is refused: $(cat log)"; }
refused() {
  ! "$check" "$1" "$2" >log 2>&1 || fail "$1 passes as $2, and should not: $(cat log)"
  grep -qF "$3" log || fail "$1: '$3' is not said: $(cat log)"
}
passes right address
passes linked address
passes undefined undefined
refused unsanitized address '0 calls into the address sanitizer'
refused both address 'calls into the undefined sanitizer in an address build'
refused right undefined 'calls into the address sanitizer in an undefined build'
refused right undefined 'calls into the undefined sanitizer, at least 168 are asked'
refused crashing address 'its seed corpus ends it with status'
refused dying address "does not end with 'Done 4 runs'"
refused blind address '0 edges are instrumented'
refused lost address 'its library libhelp.so is not found'
refused unseeded address 'it has no seed corpus'
refused unread address 'libFuzzer cannot read its dictionary'
refused empty address 'no target in'
for wrong in '' 'right' 'right memory'; do
  status=0
  "$check" $wrong >log 2>&1 || status=$?
  [ $status -eq 2 ] || fail "'$wrong' gives status $status, not 2"
done
echo "3 builds pass, 10 are refused, each with its reason"
