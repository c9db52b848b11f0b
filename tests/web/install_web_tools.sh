#!/bin/sh
# Installs what the browser tests need (Debian 12 or later; root or sudo), quietly: node and
# Chromium from apt where they are missing, onnxruntime-web and playwright-core from npm into
# tests/web/node_modules.
#
#   sh tests/web/install_web_tools.sh
#
# Does nothing where all is there. Names what is missing afterwards and fails then.
set -u
cd "$(dirname "$0")" || exit 1

needed=""
command -v node >/dev/null || needed="$needed nodejs"
command -v npm >/dev/null || needed="$needed npm"
command -v chromium-headless-shell >/dev/null || needed="$needed chromium-headless-shell"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ -n "$needed" ]; then
  root=""
  [ "$(id -u)" -ne 0 ] && root="sudo"
  export DEBIAN_FRONTEND=noninteractive
  apt="$root apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120"
  # shellcheck disable=SC2086
  { $apt update && $apt install -y --no-install-recommends $needed; } >"$log" 2>&1
fi
failed=""
for tool in node npm chromium-headless-shell; do
  command -v "$tool" >/dev/null || failed="$failed $tool"
done
# npm leaves this file when it is done; older than the lock means other versions.
done_file=node_modules/.package-lock.json
if [ -z "$failed" ] && { [ ! -f "$done_file" ] || [ package-lock.json -nt "$done_file" ]; }; then
  npm ci --ignore-scripts --no-audit --no-fund >>"$log" 2>&1 || failed="$failed npm-packages"
fi
[ -z "$failed" ] && exit 0
tail -n 20 "$log" >&2
echo "install_web_tools: not installed:$failed" >&2
exit 1
