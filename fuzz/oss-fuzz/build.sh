#!/usr/bin/env bash
# Builds every fuzz target into $OUT, as OSS-Fuzz and ClusterFuzzLite ask for it: the compilers, their flags and the engine come
# from $CC, $CXX, $CFLAGS, $CXXFLAGS and $LIB_FUZZING_ENGINE, the sources lie in $SRC/assay; what is made on the way lies in $WORK. $ASSAY_FUZZ_TARGETS, if it is set,
# names the targets to build.
set -euo pipefail
for name in CC CXX CFLAGS CXXFLAGS LIB_FUZZING_ENGINE SRC WORK OUT; do
  [ -n "${!name:-}" ] || { echo "build.sh: \$$name is not set" >&2; exit 2; }
done
source=$SRC/assay  # the service runs a copy of this script, which lies in $SRC

# The machine that fuzzes is another one than this: the oracle asks for what every x86-64 server of the last ten years has, and fused
# multiply-adds in software would take most of the time. A target lies beside the folder of the libraries that it loads.
march=
[ "$(uname -m)" != x86_64 ] || march=x86-64-v3
cmake -S "$source" -B "$WORK/assay" -G Ninja -DCMAKE_BUILD_TYPE=None -DASSAY_FUZZERS_ALONE=ON -DASSAY_FEW_TARGETS=ON -DASSAY_WERROR=OFF \
  -DASSAY_MARCH="$march" -DASSAY_FUZZING_ENGINE="$LIB_FUZZING_ENGINE" \
  -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags -DCMAKE_BUILD_RPATH='$ORIGIN/lib' >"$WORK/cmake.log" || { cat "$WORK/cmake.log" >&2; exit 1; }

known=$(sed -n 's/^set(ASSAY_FUZZ_TARGETS \(.*\) CACHE.*/\1/p' "$source/fuzz/CMakeLists.txt")
targets=${ASSAY_FUZZ_TARGETS:-$known}
for target in $targets; do
  [[ " $known " == *" $target "* ]] || { echo "build.sh: no target is called '$target'; there are: $known" >&2; exit 2; }
done
cmake --build "$WORK/assay" --target $(printf '%s_fuzz ' $targets)

# What an image that runs targets has: the C library and the loader. Every other shared library goes with the targets.
of_the_system='^(linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv|libgcc_s)\.so'
mkdir -p "$OUT/lib"
for target in $targets; do
  cp "$WORK/assay/fuzz/${target}_fuzz" "$OUT/$target"
  ldd "$WORK/assay/fuzz/${target}_fuzz" | while read -r name arrow path _; do
    [ "$arrow" = '=>' ] || continue
    [[ "$name" =~ $of_the_system ]] || cp -L "$path" "$OUT/lib/$name"
  done
  rm -f "$OUT/${target}_seed_corpus.zip"
  (cd "$source/fuzz/corpus/$target" && zip -q "$OUT/${target}_seed_corpus.zip" ./*)
  dictionary=$source/fuzz/dictionaries/$target.dict
  case "$target" in forward | backward | cache | product) dictionary=$source/fuzz/dictionaries/case.dict ;; esac
  [ ! -f "$dictionary" ] || cp "$dictionary" "$OUT/$target.dict"
  cp "$source/fuzz/oss-fuzz/target.options" "$OUT/$target.options"
done
