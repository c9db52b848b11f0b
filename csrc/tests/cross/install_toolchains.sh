#!/bin/sh
# Installs what the cross-architecture tests need (Debian 12 or later; root or sudo), quietly.
#
#   sh csrc/tests/cross/install_toolchains.sh [aarch64] [wasm]     default: both
#
# Does nothing where all is there. Names every package that is missing afterwards and fails then.
# The WASM runtime is a Python package: `pip install wasmtime`.
set -u

aarch64="g++-aarch64-linux-gnu qemu-user"
wasm="clang-22 lld-22 libclang-rt-22-dev libclang-rt-22-dev-wasm32 libc++-22-dev-wasm32"
wasm="$wasm libc++abi-22-dev-wasm32 wasi-libc"
wanted=""
for part in "${@:-both}"; do
  case "$part" in
    aarch64) wanted="$wanted $aarch64" ;;
    wasm) wanted="$wanted $wasm" ;;
    both) wanted="$aarch64 $wasm" ;;
    *) echo "install_toolchains: no part is called '$part'; there are aarch64 and wasm" >&2
       exit 2 ;;
  esac
done

missing() {
  for package in $wanted; do
    case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" in
      "install ok installed") ;;
      *) printf ' %s' "$package" ;;
    esac
  done
}

needed=$(missing)
[ -z "$needed" ] && exit 0
root=""
[ "$(id -u)" -ne 0 ] && root="sudo"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt="$root apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120"
# shellcheck disable=SC2086
{ $apt update && $apt install -y --no-install-recommends $needed; } >"$log" 2>&1 ||
  # One package that cannot be had must not keep the others out.
  for package in $needed; do
    $apt install -y --no-install-recommends "$package" >>"$log" 2>&1
  done
failed=$(missing)
[ -z "$failed" ] && exit 0
tail -n 20 "$log" >&2
echo "install_toolchains: not installed:$failed" >&2
exit 1
