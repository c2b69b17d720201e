#!/usr/bin/env bash
# Cross-compiles the command for 64-bit Arm and runs the smoke, padding and products suites under qemu-user: the kernels' NEON
# code under the same verdicts. The pages and the example are those of the release build. Debian's arm64 libraries are unpacked into the build folder, not installed.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/build/arm
mkdir -p "$out/apt/lists/partial" "$out/apt/cache/archives/partial" "$out/debs" "$out/root" "$out/objects"

packages="libhwy1 libfmt9 libflint-arb2 libflint17 libmpfr6 libgmp10 libntl44 libgf2x3 libsqlite3-0 zlib1g-dev libflint-dev libgmp-dev libmpfr-dev"
if [ "$(cat "$out/root/ready" 2>/dev/null)" != "$packages" ]; then
  apt_arm=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
    -o Dir::State::lists="$out/apt/lists" -o Dir::Cache="$out/apt/cache")
  "${apt_arm[@]}" update
  (cd "$out/debs" && "${apt_arm[@]}" download $packages)
  for deb in "$out"/debs/*.deb; do dpkg -x "$deb" "$out/root"; done
  echo "$packages" >"$out/root/ready"
fi
libraries=$out/root/usr/lib/aarch64-linux-gnu

flags=(-std=c++20 -O2 -ffp-contract=off -fno-math-errno -DASSAY_STD_THREADS=1 -DFMT_SHARED -DHWY_SHARED_DEFINE "-DASSAY_RELEASE=\"arm\""
  -I. -Iinclude -I"$out/include" -isystem "$out/root/usr/include/aarch64-linux-gnu" -idirafter /usr/include/eigen3 -idirafter /usr/include/flint -idirafter /usr/include)
cmake -DOUT="$out/device_sources.cc" -DDIR=kernels/device -P kernels/device/embed.cmake
cmake -DOUT="$out/include/cli/commit.h" -DSOURCE="$PWD" -DFLAGS=-O2 -P cli/commit.cmake
mapfile -t sources < <(find problem oracle kernels harness reports cli -name "*.cc" | sort; printf "%s\n" fuzz/jobs.cc build/release/reports/pages.cc build/release/cli/kernel_project.cc "$out"/*.cc)
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} bash -c '
  object=$1/objects/$(echo "{}" | tr / _).o; shift
  [ "$object" -nt "{}" ] && [ -z "$(find problem oracle kernels harness reports cli include fuzz -name "*.h" -newer "$object" -print -quit)" ] || { echo "compiling {}"; aarch64-linux-gnu-g++ "$@" -c "{}" -o "$object"; }' _ "$out" "${flags[@]}"
aarch64-linux-gnu-g++ -o "$out/assay" "$out"/objects/*.o "$libraries"/libhwy.so.1 "$libraries"/libfmt.so.9 "$libraries"/libflint-arb.so.2 \
  "$libraries"/libflint.so.17 "$libraries"/libmpfr.so.6 "$libraries"/libgmp.so.10 "$libraries"/libsqlite3.so.0 "$libraries"/libz.a -pthread -Wl,-rpath-link,"$libraries"

run=(qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH="$libraries" "$out/assay")
"${run[@]}" check --in-process --suite smoke --no-shrink
"${run[@]}" check --in-process --suite padding --no-shrink --shard 0/4
"${run[@]}" check --in-process --suite products --no-shrink --shard 0/4
