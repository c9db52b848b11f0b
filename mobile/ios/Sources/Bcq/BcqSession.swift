import CBcq
import Foundation

/// How a text is made; the defaults are greedy. See bcq_sampling in bcq/runtime.h.
public struct BcqGeneration: Sendable {
    public var maxTokens = 256
    public var temperature: Float = 0
    public var topK: Int32 = 0
    public var topP: Float = 1
    public var minP: Float = 0
    public var repetitionPenalty: Float = 1
    public var presencePenalty: Float = 0
    /// The same seed gives the same text on every machine.
    public var seed: UInt64 = 0

    public init() {}

    var native: bcq_sampling {
        bcq_sampling(
            temperature: temperature, top_k: topK, top_p: topP, min_p: minP,
            repetition_penalty: repetitionPenalty, presence_penalty: presencePenalty)
    }
}

/// One conversation's tokens over a model. Every call runs on a queue of its own, one at a time;
/// only cancelling goes around it.
public final class BcqSession: @unchecked Sendable {
    private let model: BcqModel
    private let session: OpaquePointer
    private let context: Int
    private let queue = DispatchQueue(label: "bcquant.session", qos: .userInitiated)
    private var held: [Int32] = []  // on the queue only

    /// At most `context` tokens; nil: as many as the model has positions.
    public init(_ model: BcqModel, context: Int? = nil) throws {
        var session: OpaquePointer?
        let most = context ?? model.maxPositions
        try BcqError.check(bcq_session_create(model.model, Int64(most), &session))
        self.model = model
        self.session = session!
        self.context = most
    }

    deinit {
        bcq_session_destroy(session)
    }

    /// Forgets every token from `position` on.
    public func truncate(to position: Int) throws {
        try queue.sync {
            try BcqError.check(bcq_session_truncate(session, Int64(position)))
            held.removeSubrange(position...)
        }
    }

    /// Appends a prompt and gives text in whole characters as it comes, until an end token, the
    /// most tokens, or a full context. Ending the iteration, or the task around it, ends the
    /// computing within a layer's time. isContinuation: a leading space is kept, as after a prompt.
    public func generate(
        _ ids: [Int32], _ generation: BcqGeneration = BcqGeneration(), isContinuation: Bool = true
    ) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let cancelled = Cancelled()
            continuation.onTermination = { [self] reason in
                guard case .cancelled = reason else { return }
                cancelled.set()
                bcq_session_cancel(session)
            }
            queue.async { [self] in
                do {
                    try write(ids, generation, isContinuation, cancelled) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
        }
    }

    private func write(
        _ ids: [Int32], _ generation: BcqGeneration, _ isContinuation: Bool,
        _ cancelled: Cancelled, _ give: (String) -> Void
    ) throws {
        var stream: OpaquePointer?
        try BcqError.check(bcq_stream_create(model.tokenizer, isContinuation ? 1 : 0, &stream))
        defer { bcq_stream_destroy(stream) }
        let sampler = Sampler(model.info.vocab_size, generation)
        var piece: UnsafePointer<CChar>?
        var bytes = 0
        var given = ids
        for _ in 0..<max(generation.maxTokens, 0) {
            guard let logits = try append(given, cancelled) else { return }
            let id = try sampler.draw(logits, held)
            if model.endIds.contains(id) { break }
            try BcqError.check(bcq_stream_push(stream, id, &piece, &bytes))
            if bytes > 0 { give(text(piece, bytes)) }
            if held.count == context { break }
            given = [id]
        }
        try BcqError.check(bcq_stream_end(stream, &piece, &bytes))
        if bytes > 0 { give(text(piece, bytes)) }
    }

    /// Logits after the last token; nil when cancelled. A cancel that came too late for the text it
    /// was meant for is none of this one: the session is as it was, so the append is done again.
    private func append(
        _ ids: [Int32], _ cancelled: Cancelled
    ) throws -> UnsafePointer<Float>? {
        while !cancelled.isSet {
            var logits: UnsafePointer<Float>?
            let status = bcq_session_append(session, ids, Int64(ids.count), &logits)
            if status == BCQ_CANCELLED { continue }
            try BcqError.check(status)
            held += ids
            return logits
        }
        return nil
    }
}

/// Whether one text's reader has gone away.
private final class Cancelled: @unchecked Sendable {
    private let lock = NSLock()
    private var value = false

    var isSet: Bool {
        lock.lock()
        defer { lock.unlock() }
        return value
    }

    func set() {
        lock.lock()
        value = true
        lock.unlock()
    }
}

/// Draws tokens with memory of its own.
private final class Sampler {
    private let vocabSize: Int
    private var sampling: bcq_sampling
    private var seed: UInt64
    private var logits: [Float]
    private var scratch: [UInt64]

    init(_ vocabSize: Int64, _ generation: BcqGeneration) {
        self.vocabSize = Int(vocabSize)
        sampling = generation.native
        seed = generation.seed
        logits = [Float](repeating: 0, count: Int(vocabSize))
        scratch = [UInt64](repeating: 0, count: Int(vocabSize))
    }

    func draw(_ fresh: UnsafePointer<Float>, _ previous: [Int32]) throws -> Int32 {
        var id: Int32 = 0
        let num = vocabSize
        logits.withUnsafeMutableBufferPointer { $0.baseAddress!.update(from: fresh, count: num) }
        try BcqError.check(
            bcq_sample(
                &logits, Int64(vocabSize), &sampling, previous, Int64(previous.count), &seed,
                &scratch, vocabSize * 8, &id))
        return id
    }
}
