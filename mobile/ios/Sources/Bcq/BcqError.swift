import CBcq

/// What the runtime refused: a status of bcq/status.h and one sentence.
public struct BcqError: Error, CustomStringConvertible {
    public let status: UInt32
    public let description: String

    /// Throws unless a call said BCQ_OK.
    static func check(_ status: bcq_status) throws {
        if status == BCQ_OK { return }
        let sentence = String(cString: bcq_error_text())
        throw BcqError(status: UInt32(status.rawValue), description: sentence)
    }
}

/// Text of bytes that the runtime owns until its next call.
func text(_ data: UnsafePointer<CChar>?, _ bytes: Int) -> String {
    guard let data, bytes > 0 else { return "" }
    return String(decoding: UnsafeRawBufferPointer(start: data, count: bytes), as: UTF8.self)
}

/// Strings as the C API takes lists of them: pointers to UTF-8, and their sizes in bytes. The
/// pointers are good until `use` returns.
func withUTF8<Result>(
    of strings: [String], _ use: ([UnsafePointer<CChar>?], [Int]) throws -> Result
) rethrows -> Result {
    let bytes = strings.map { Array($0.utf8) }
    // All in one array, so that one pointer stands for all; a byte more, as empty arrays have none.
    let joined = bytes.flatMap { $0 }.map { CChar(bitPattern: $0) } + [0]
    return try joined.withUnsafeBufferPointer { buffer in
        var at = 0
        var pointers: [UnsafePointer<CChar>?] = []
        for each in bytes {
            pointers.append(buffer.baseAddress! + at)
            at += each.count
        }
        return try use(pointers, bytes.map(\.count))
    }
}
