#!/usr/bin/env bash
# try.sh FOLDER [SANITIZER [TARGET...]]: builds the targets as OSS-Fuzz does, without Docker: the environment of its image of builders with
# Debian's clang 19 and libc++, nothing else; then the rules of check_build.sh. SANITIZER is address (default) or undefined.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
folder=$1 sanitizer=${2:-address}
shift; [ $# -eq 0 ] || shift
flags='-O1 -fno-omit-frame-pointer -gline-tables-only -DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION'
case "$sanitizer" in
  address) flags+=' -fsanitize=address -fsanitize-address-use-after-scope' ;;
  undefined)
    checks=array-bounds,bool,builtin,enum,function,integer-divide-by-zero,null,return,returns-nonnull-attribute,shift,signed-integer-overflow,unreachable,vla-bound,vptr
    flags+=" -fsanitize=$checks -fno-sanitize-recover=$checks" ;;
  *) echo "try.sh: SANITIZER is address or undefined, not '$sanitizer'" >&2; exit 2 ;;
esac
flags+=' -fsanitize=fuzzer-no-link'
rm -rf "$folder/out"
mkdir -p "$folder"/{out,work,src}
folder=$(cd "$folder" && pwd)
ln -sfn "$(dirname "$(dirname "$here")")" "$folder/src/assay"
cp "$here/build.sh" "$folder/src/"
# Debian's libFuzzer needs the C++ library of gcc beside clang's; the one of the service does not. It is named by its
# file, because clang reads -lstdc++ as -lc++ where -stdlib=libc++ is given.
env -i HOME="$HOME" PATH="$PATH" ${CCACHE_DIR:+CCACHE_DIR="$CCACHE_DIR"} \
  CC=clang-19 CXX=clang++-19 CFLAGS="$flags" CXXFLAGS="$flags -stdlib=libc++" LIB_FUZZING_ENGINE='-fsanitize=fuzzer -l:libstdc++.so.6' \
  SRC="$folder/src" WORK="$folder/work" OUT="$folder/out" ${1:+ASSAY_FUZZ_TARGETS="$*"} "$folder/src/build.sh"
"$here/check_build.sh" "$folder/out" "$sanitizer"
