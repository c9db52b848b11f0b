import CBcq

/// Text of ids, in whole characters, up to a stop string.
final class Writer {
    private let stream: OpaquePointer
    private let stop: OpaquePointer?

    /// Whether a stop string was found: no text comes any more.
    private(set) var isStopped = false

    init(_ tokenizer: OpaquePointer?, _ stops: [String], _ isContinuation: Bool) throws {
        var stream: OpaquePointer?
        var stop: OpaquePointer?
        try BcqError.check(bcq_stream_create(tokenizer, isContinuation ? 1 : 0, &stream))
        do {
            if !stops.isEmpty {
                try withUTF8(of: stops) { strings, sizes in
                    try BcqError.check(bcq_stop_create(strings, sizes, Int32(stops.count), &stop))
                }
            }
        } catch {
            bcq_stream_destroy(stream)
            throw error
        }
        self.stream = stream!
        self.stop = stop
    }

    deinit {
        bcq_stop_destroy(stop)
        bcq_stream_destroy(stream)
    }

    /// What an id completes and can be shown.
    func push(_ id: Int32) throws -> String {
        var piece: UnsafePointer<CChar>?
        var bytes = 0
        try BcqError.check(bcq_stream_push(stream, id, &piece, &bytes))
        return try shown(piece, bytes)
    }

    /// What is left when the ids end.
    func end() throws -> String {
        var piece: UnsafePointer<CChar>?
        var bytes = 0
        try BcqError.check(bcq_stream_end(stream, &piece, &bytes))
        let last = try shown(piece, bytes)
        guard let stop, !isStopped else { return last }
        try BcqError.check(bcq_stop_end(stop, &piece, &bytes))
        return last + text(piece, bytes)
    }

    private func shown(_ piece: UnsafePointer<CChar>?, _ bytes: Int) throws -> String {
        guard let stop else { return text(piece, bytes) }
        var shown: UnsafePointer<CChar>?
        var shownBytes = 0
        var isFound: Int32 = 0
        try BcqError.check(bcq_stop_push(stop, piece, bytes, &shown, &shownBytes, &isFound))
        isStopped = isFound != 0
        return text(shown, shownBytes)
    }
}
