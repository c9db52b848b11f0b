#!/bin/sh
# Puts the module map and the headers of the C API into one folder, as an XCFramework wants them.
#
#   sh mobile/ios/build_headers.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bcq"
cp "$here/CBcq/module.modulemap" "$1/"
cp "$here/../include/bcq/runtime.h" "$1/bcq/"
for header in status threads kernels; do
  cp "$here/../../csrc/include/bcq/$header.h" "$1/bcq/"
done
