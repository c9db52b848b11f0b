#!/bin/sh
# The Kotlin compiler for tests/mobile/test_jni.py, from npm into build/kotlin; needs npm and a JDK.
#
#   sh mobile/android/tests/install_kotlin.sh
set -eu
cd "$(dirname "$0")/../../.."
mkdir -p build/kotlin
npm install --no-audit --no-fund --prefix build/kotlin kotlin-compiler@2.4.20
