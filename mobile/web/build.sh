#!/bin/sh
# Builds the runtime for browsers: FOLDER/bcq.wasm (SIMD) and FOLDER/bcq-relaxed.wasm (relaxed SIMD,
# whose int8 dot products are twice as fast), and puts the page and the API beside them.
#
#   sh mobile/web/build.sh [FOLDER]     default: build/web
#
# Needs clang-22 and wasi-libc: `make toolchains`. The modules import nothing.
set -eu

web=$(cd "$(dirname "$0")" && pwd)
mobile=$(dirname "$web")
csrc=$(dirname "$mobile")/csrc
out=${1:-$(dirname "$mobile")/build/web}
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
mkdir -p "$out"

# Debian's WASI headers lie in a folder of the older name, which clang calls deprecated.
target="--target=wasm32-wasi --sysroot=/usr -Wno-deprecated"
flags="$target -std=c++17 -O3 -Wall -Wextra -Werror -fno-exceptions -fno-rtti -fno-math-errno"
flags="$flags -ffunction-sections -fdata-sections"
flags="$flags -I$mobile/include -I$mobile -I$csrc/include -I$csrc"
# Debian's wasm-opt corrupts relaxed SIMD; WASM's stack of 64 KiB is small.
link="--no-wasm-opt -nostartfiles -Wl,--no-entry -Wl,--gc-sections -Wl,--strip-all"
link="$link -Wl,-z,stack-size=1048576 -Wl,--max-memory=4294967296"
link="$link -Wl,--export=malloc -Wl,--export=free"
# The C API, but for what takes a path.
names=$(sed 's,///.*,,' "$mobile/include/bcq/runtime.h" | grep -oE '\bbcq_[a-z_]+\(' | tr -d '(')
for name in $names; do
  case "$name" in
    bcq_package_open | bcq_session_save | bcq_session_load) ;;
    *) link="$link -Wl,--export=$name" ;;
  esac
done

compile() {  # source, object, flags
  source=$1
  object=$2
  shift 2
  # shellcheck disable=SC2086
  clang++-22 $flags "$@" -c "$source" -o "$objects/$object.o"
}
flags_of() { awk -v t="$1" '$2 == t { $1 = $2 = ""; print }' "$csrc/tiers.txt"; }

common="$web/system.cpp"
for source in "$mobile"/runtime/*.cpp "$csrc"/core/*.cpp; do
  [ "$source" = "$mobile/runtime/mapped_file.cpp" ] || common="$common $source"
done
(
  simd="$csrc/kernels/tier_wasm_simd128.cpp"
  # shellcheck disable=SC2046
  {
    compile "$simd" bcq.tier $(flags_of wasm_simd128)
    compile "$simd" bcq-relaxed.tier $(flags_of wasm_simd128) -mrelaxed-simd
    compile "$csrc/kernels/tier_scalar.cpp" scalar.common $(flags_of scalar)
  }
) &
tiers=$!
for source in $common; do compile "$source" "$(basename "$source" .cpp).common"; done
wait $tiers

# Linked as C: a symbol of the C++ run-time library would be undefined.
for module in bcq bcq-relaxed; do
  # shellcheck disable=SC2086
  clang-22 $target $link "$objects"/*.common.o "$objects/$module.tier.o" -o "$out/$module.wasm"
done
cp "$web"/*.js "$web"/*.d.ts "$web"/index.html "$out"
