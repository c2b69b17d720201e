#!/usr/bin/env bash
# dev_test.sh DEV WORK: `./dev` in a checkout of toys. Packages come without a network: apt-get and
# dpkg-query stand in for those of the system, and a peer is a file that pkg-config finds. The peers
# that this machine has are hidden.
set -euo pipefail
dev=$1 work=$2
fail() { printf 'dev_test: %s\n' "$*" >&2; exit 1; }

rm -rf "$work"
mkdir -p "$work"/{tools,system/lib/pkgconfig,checkout,elsewhere}
work=$(cd "$work" && pwd)
export SYSTEM=$work/system PATH=$work/tools:$PATH PKG_CONFIG_LIBDIR=$work/system/lib/pkgconfig PKG_CONFIG_PATH= TMPDIR=$work
export CMAKE_PREFIX_PATH=$work/system
: >"$SYSTEM/packages"
: >"$SYSTEM/lacks"  # packages that this release has not

tool() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$work/tools/$1"; chmod +x "$work/tools/$1"; }
# What each package brings; those that are not named bring nothing.
tool apt-get '
[ "$1" != update ] || : >"$SYSTEM/updated"
[ "$1" = install ] || exit 0
for p in "${@:2}"; do
  [ "${p#-}" = "$p" ] || continue
  ! grep -qx "$p" "$SYSTEM/lacks" || { echo "E: Unable to locate package $p" >&2; exit 100; }
  grep -qx "$p" "$SYSTEM/packages" || printf "%s\n" "$p" >>"$SYSTEM/packages"
  case "$p" in
    libopenblas-dev) printf "Name: openblas\nDescription: peer\nVersion: 1\nLibs: -lopenblas\n" >"$SYSTEM/lib/pkgconfig/openblas.pc" ;;
    libdnnl-dev) mkdir -p "$SYSTEM/include"; : >"$SYSTEM/include/dnnl_toy.h"; : >"$SYSTEM/lib/libdnnl_toy.so" ;;
    libtorch-dev) mkdir -p "$SYSTEM/lib/cmake/Torch_toy" "$SYSTEM/bin"
      : >"$SYSTEM/lib/cmake/Torch_toy/Torch_toyConfig.cmake"
      : >"$SYSTEM/bin/torch_toy"; chmod +x "$SYSTEM/bin/torch_toy" ;;
  esac
done'
tool dpkg-query '
name=${@: -1}
case "$name" in
  -*) cat "$SYSTEM/packages" ;;
  *) grep -qx "$name" "$SYSTEM/packages" && echo "install ok installed" ;;
esac'
# What it says is longer than a pipe holds: whoever stops reading at the first line that matters ends it.
tool apt-cache '
[ -f "$SYSTEM/updated" ] || exit 0
set -e
case "$#" in
  1) printf " 500 http://packages stable/main\n     origin packages\n" ;;
  *) candidate=1; ! grep -qx "$2" "$SYSTEM/lacks" || candidate="(none)"
     printf "%s:\n  Installed: (none)\n  Candidate: %s\n  Version table:\n" "$2" "$candidate" ;;
esac
printf "%0100000d\n" 0'
tool sudo 'exec "$@"'
for name in node npm; do tool "$name" ''; done

cp "$dev" "$work/checkout/dev"
cd "$work/checkout"
cat >CMakePresets.json <<'TXT'
{"version": 6, "configurePresets": [{"name": "release", "generator": "Ninja", "binaryDir": "${sourceDir}/build/${presetName}"}]}
TXT
# Every way in which the build looks for an optional part. The programs say what was found.
cat >CMakeLists.txt <<'TXT'
cmake_minimum_required(VERSION 3.25)
project(toys LANGUAGES NONE)
set(CMAKE_FIND_LIBRARY_PREFIXES lib)
set(CMAKE_FIND_LIBRARY_SUFFIXES .so)
find_package(PkgConfig REQUIRED)
pkg_check_modules(OPENBLAS openblas)
find_path(DNNL_INCLUDE dnnl_toy.h)
find_library(DNNL_LIBRARY dnnl_toy)
find_package(Torch_toy QUIET)
find_program(TORCH torch_toy)
set(ASSAY_GGML "" CACHE PATH "")
set(peers "")
if(OPENBLAS_FOUND)
  string(APPEND peers " openblas")
endif()
if(DNNL_INCLUDE AND DNNL_LIBRARY)
  string(APPEND peers " onednn")
endif()
if(Torch_toy_FOUND AND TORCH)
  string(APPEND peers " torch")
endif()
if(ASSAY_GGML)
  string(APPEND peers " ggml")
endif()
foreach(program cli/assay bench/attention_bench bench/libassay_peer_toy.so property_tests/equality_tests)
  file(WRITE ${CMAKE_BINARY_DIR}/${program} "#!/bin/sh\necho \"peers:${peers}\"\n[ -z \"$RC_PARAMS\" ] || echo \"$RC_PARAMS $*\"\nwhile [ $# -gt 0 ]; do [ \"$1\" != --json ] || echo written >\"$2\"; shift; done\n")
  file(CHMOD ${CMAKE_BINARY_DIR}/${program} PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
foreach(target assay assay_c attention_bench equality_tests)
  add_custom_target(${target})
endforeach()
install(PROGRAMS ${CMAKE_BINARY_DIR}/cli/assay DESTINATION bin)
TXT

# says WORDS COMMAND...: it ends with status 0, and a line of its output is WORDS.
says() {
  local words=$1 output; shift
  output=$("$@" 2>&1) || fail "'$*' ended with status $?: $output"
  grep -qx -- "$words" <<<"$output" || fail "'$*' does not say '$words': $output"
}
silent_about() {
  local words=$1 output; shift
  output=$("$@" 2>&1) || fail "'$*' ended with status $?: $output"
  ! grep -q -- "$words" <<<"$output" || fail "'$*' says '$words': $output"
}

# says_no WORDS COMMAND...: it ends with another status than 0, and its output holds WORDS.
says_no() {
  local words=$1 output; shift
  ! output=$("$@" 2>&1) || fail "'$*' ends well: $output"
  grep -qF -- "$words" <<<"$output" || fail "'$*' does not say '$words': $output"
}
has() { grep -qx "$1" "$SYSTEM/packages"; }

# What a release lacks is left out where something else does or where it may be missing, and is named and counted.
printf '%s\n' libflint-arb-dev oclgrind >"$SYSTEM/lacks"
says '== left out, because this release has no such package: oclgrind (1)' ./dev run
has libflint-dev && ! has libflint-arb-dev && ! has oclgrind || fail "the release without an Arb of its own got $(cat "$SYSTEM/packages")"
silent_about installing ./dev run
says '== left out, because this release has no such package: oclgrind (1)' ./dev run
printf '%s\n' oclgrind libopenblas-dev >"$SYSTEM/lacks"
says '== left out, because this release has no such package: oclgrind libopenblas-dev (2)' ./dev bench forward
# Nothing is left out because the lists were not fetched yet.
rm "$SYSTEM/updated"
: >"$SYSTEM/lacks"
silent_about 'left out' ./dev run
has libflint-arb-dev && has oclgrind || fail "the release with all packages got $(cat "$SYSTEM/packages")"
# A package that is needed is not left out.
sed -i /^libhwy-dev$/d "$SYSTEM/packages"
echo libhwy-dev >"$SYSTEM/lacks"
says_no 'dev: apt-get could not install: libhwy-dev' ./dev run
rm -rf build "$SYSTEM"/{lacks,updated}
: >"$SYSTEM/lacks"
: >"$SYSTEM/packages"
rm -rf "$SYSTEM"/{lib,include,bin}
mkdir -p "$SYSTEM/lib/pkgconfig"

# Peers whose packages come after the first build are found by the next one; what has not changed is not configured again.
says 'peers:' ./dev run
silent_about configuring ./dev assay
says 'peers: openblas onednn' ./dev bench forward
silent_about configuring ./dev bench forward
says 'peers: openblas onednn torch' ./dev peers
silent_about configuring ./dev assay
says 'peers: openblas onednn torch' ./dev run
# A package that somebody installed without ./dev, and a part that the environment names.
printf 'other\n' >>"$SYSTEM/packages"
says '== configuring release' ./dev assay
ASSAY_GGML=somewhere says 'peers: openblas onednn torch ggml' ./dev bench products
grep -qx "ASSAY_GGML:PATH=$work/checkout/somewhere" build/release/CMakeCache.txt || fail "ASSAY_GGML is no path from where the user stands"

# Properties draw anew, as many cases as the user wants.
says 'max_success=1000 max_discard_ratio=100 --gtest_filter=\*' ./dev properties
says 'max_success=7 max_discard_ratio=100 --gtest_filter=AnyCase.\*' ./dev properties 7 'AnyCase.*'

# The small kernels are judged with the command of this checkout.
mkdir -p property_tests
printf '#!/bin/sh\necho "judged with $*"\n' >property_tests/partial_kernels.sh
chmod +x property_tests/partial_kernels.sh
says "judged with build/release/cli/assay $work/checkout one two" ./dev partial one two
says 'judged with .*/checkout' ./dev partial

# Paths are those of the user, wherever he stands.
cd "$work/elsewhere"
for dev in "$work/checkout/dev" ../checkout/dev; do
  for command in assay run 'bench forward'; do
    # shellcheck disable=SC2086
    says 'peers: .*' "$dev" $command --json out.json
    [ -f out.json ] || fail "$dev $command --json out.json wrote elsewhere"
    rm out.json
  done
done

# The command on the PATH.
says "== $work/elsewhere/there/bin is not on PATH; the command is $work/elsewhere/there/bin/assay" ../checkout/dev install there
[ -x there/bin/assay ] || fail "./dev install there installed no command"
PATH=$work/home/.local/bin:$PATH HOME=$work/home silent_about 'not on PATH' ../checkout/dev install
[ -x "$work/home/.local/bin/assay" ] || fail "./dev install does not install into ~/.local"
