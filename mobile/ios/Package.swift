// swift-tools-version:5.9
import PackageDescription

// CBcq is the C API as a module over the static library; build_xcframework.sh makes it.
let package = Package(
    name: "Bcq",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [
        .library(name: "Bcq", targets: ["Bcq"])
    ],
    targets: [
        .binaryTarget(name: "CBcq", path: "CBcq.xcframework"),
        .target(name: "Bcq", dependencies: ["CBcq"], path: "Sources/Bcq"),
    ]
)
