#!/bin/sh
# Builds mobile/ios/CBcq.xcframework (iPhone, simulator, Mac), which Package.swift links.
# Needs a Mac with Xcode and CMake.
#
#   sh mobile/ios/build_xcframework.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build="$here/../../build/ios"
rm -rf "$here/CBcq.xcframework"
sh "$here/build_headers.sh" "$build/headers"

# NAME SYSTEM SDK TARGET: one static library for arm64
build_one() {
  cmake -S "$here/.." -B "$build/$1" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME="$2" \
    -DCMAKE_OSX_SYSROOT="$3" -DCMAKE_OSX_ARCHITECTURES=arm64 -DCMAKE_OSX_DEPLOYMENT_TARGET="$4"
  cmake --build "$build/$1" --target bcq_runtime_static -j
}

build_one iphone iOS iphoneos 15.0
build_one simulator iOS iphonesimulator 15.0
build_one mac Darwin macosx 12.0
xcodebuild -create-xcframework \
  -library "$build/iphone/libbcq_runtime.a" -headers "$build/headers" \
  -library "$build/simulator/libbcq_runtime.a" -headers "$build/headers" \
  -library "$build/mac/libbcq_runtime.a" -headers "$build/headers" \
  -output "$here/CBcq.xcframework"
