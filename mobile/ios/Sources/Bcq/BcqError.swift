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
