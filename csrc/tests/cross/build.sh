#!/bin/sh
# Builds the kernels and their test programs for another architecture.
#
#   sh csrc/tests/cross/build.sh aarch64|wasm|wasm-relaxed FOLDER TEST...
#
# TEST is the stem of a file of csrc/tests; simd_test becomes a program for each vocabulary,
# simd_<isa>. aarch64 programs are static, for qemu-aarch64; WASM programs are WASI modules, for
# run_wasm.py. More flags: CROSS_FLAGS.
set -eu

target=$1
out=$2
shift 2
csrc=$(cd "$(dirname "$0")/../.." && pwd)

flags="-std=c++17 -O2 -Wall -Wextra -Werror -fno-exceptions -fno-rtti -fno-math-errno"
flags="$flags -I$csrc/include -I$csrc ${CROSS_FLAGS:-}"
case "$target" in
  aarch64)
    machine=aarch64
    compiler=aarch64-linux-gnu-g++
    # GCC's first scheduling pass spills the accumulators of the tiles.
    flags="$flags -fno-schedule-insns"
    link_flags="-static -pthread"
    suffix=""
    ;;
  wasm | wasm-relaxed)
    machine=wasm32
    # Debian's WASI headers lie in a folder of the older name, which clang calls deprecated.
    compiler="clang++-22 --target=wasm32-wasi --sysroot=/usr -Wno-deprecated"
    [ "$target" = wasm-relaxed ] && flags="$flags -mrelaxed-simd"
    # Debian's wasm-opt corrupts relaxed SIMD; the default stack of 64 KiB is small.
    link_flags="--no-wasm-opt -Wl,-z,stack-size=1048576"
    suffix=".wasm"
    ;;
  *)
    echo "build: no target is called '$target'; there are aarch64, wasm and wasm-relaxed" >&2
    exit 2
    ;;
esac

# Names of this machine's tiers, then the flags of one.
tiers=$(awk -v m="$machine" '$1 == m || $1 == "any" { print $2 }' "$csrc/tiers.txt")
flags_of() { awk -v t="$1" '$2 == t { $1 = $2 = ""; print }' "$csrc/tiers.txt"; }

compile() {  # file of csrc without .cpp, object without .o, flags
  file=$1
  object=$2
  shift 2
  # shellcheck disable=SC2086
  $compiler $flags "$@" -c "$csrc/$file.cpp" -o "$out/$object.o"
}

link() {  # program, objects
  program=$1
  shift
  # shellcheck disable=SC2086
  $compiler "$@" $link_flags -o "$out/$program$suffix"
}

mkdir -p "$out"
core="attention cpu_features dispatch linear status threads weight"
# Two at a time: the tiers take most of the time.
(
  for name in $core; do compile "core/$name" "$name"; done
  for name in "$@"; do
    [ "$name" = simd_test ] || compile "tests/$name" "$name" -ffp-contract=off
  done
  # shellcheck disable=SC2046
  compile kernels/tier_scalar tier_scalar $(flags_of scalar)
) &
others=$!
objects=""
for name in $core; do objects="$objects $out/$name.o"; done
for tier in $tiers; do
  objects="$objects $out/tier_$tier.o"
  # shellcheck disable=SC2046
  [ "$tier" = scalar ] || compile "kernels/tier_$tier" "tier_$tier" $(flags_of "$tier")
done
wait $others

for name in "$@"; do
  if [ "$name" != simd_test ]; then
    # shellcheck disable=SC2086
    link "$name" "$out/$name.o" $objects
    continue
  fi
  for tier in $tiers; do
    [ -f "$csrc/kernels/simd_$tier.h" ] || continue
    # shellcheck disable=SC2046
    compile tests/simd_test "simd_$tier" "-DBCQ_SIMD=\"kernels/simd_$tier.h\"" $(flags_of "$tier")
    link "simd_$tier" "$out/simd_$tier.o"
  done
done
