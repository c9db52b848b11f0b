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
    /// Strings that end the text and are not shown.
    public var stops: [String] = []

    public init() {}

    var native: bcq_sampling {
        bcq_sampling(
            temperature: temperature, top_k: topK, top_p: topP, min_p: minP,
            repetition_penalty: repetitionPenalty, presence_penalty: presencePenalty)
    }
}

/// What happens when a text outgrows its context; the number is bcq_overflow.
public enum BcqOverflow: Int32, Sendable {
    /// A prompt that has no room is thrown as a BcqError; every session begins with this.
    case error = 0
    /// As much of it is appended as fits.
    case stop = 1
    /// The oldest tokens behind the first `keep` are forgotten, half of them at a time, and the
    /// text goes on; a cancel just then leaves the first `keep`.
    case slide = 2
}

/// One conversation's tokens over a model. Every call runs on a queue of its own, one at a time;
/// only cancelling goes around it.
public final class BcqSession: @unchecked Sendable {
    private let model: BcqModel
    private let session: OpaquePointer
    private let context: Int
    private let queue = DispatchQueue(label: "bcquant.session", qos: .userInitiated)
    private var overflow = BcqOverflow.error  // on the queue only, as is the next
    private var keep = 0

    /// At most `context` tokens; nil: as many as the model has positions.
    public init(_ model: BcqModel, context: Int? = nil) throws {
        var session: OpaquePointer?
        let most = context ?? model.maxPositions
        try BcqError.check(bcq_session_create(model.model, Int64(most), &session))
        self.model = model
        self.session = session!
        self.context = most
    }

    /// Goes on where the session was that `save` wrote to `file`; the overflow policy is not saved.
    public init(_ model: BcqModel, savedAt file: URL, context: Int? = nil) throws {
        var session: OpaquePointer?
        let most = context ?? model.maxPositions
        try BcqError.check(bcq_session_load(model.model, file.path, Int64(most), &session))
        self.model = model
        self.session = session!
        self.context = most
    }

    deinit {
        bcq_session_destroy(session)
    }

    /// Writes the tokens held and their caches to `file`, for `init(_:savedAt:context:)`.
    public func save(to file: URL) throws {
        try queue.sync { try BcqError.check(bcq_session_save(session, file.path)) }
    }

    /// The ids of the tokens held.
    public var ids: [Int32] { queue.sync { held } }

    /// How many of the first tokens held are the first of `ids`.
    public func match(_ ids: [Int32]) throws -> Int {
        try queue.sync { try common(ids) }
    }

    /// Forgets what is no beginning of `ids` and gives those of them that are still to be appended,
    /// at least the last one: generating with these computes of a talk only what is new.
    public func keepPrefix(of ids: [Int32]) throws -> [Int32] {
        try queue.sync {
            let kept = min(try common(ids), max(ids.count - 1, 0))
            try BcqError.check(bcq_session_truncate(session, Int64(kept)))
            return Array(ids.dropFirst(kept))
        }
    }

    /// Chooses what happens from now on when a text outgrows the context. keep: of slide.
    public func setOverflow(_ overflow: BcqOverflow, keep: Int = 0) throws {
        try queue.sync {
            try BcqError.check(bcq_session_set_overflow(session, overflow.rawValue, Int64(keep)))
            self.overflow = overflow
            self.keep = keep
        }
    }

    /// Forgets every token from `position` on.
    public func truncate(to position: Int) throws {
        try queue.sync { try BcqError.check(bcq_session_truncate(session, Int64(position))) }
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
        let writer = try Writer(model.tokenizer, generation.stops, isContinuation)
        let sampler = Sampler(model.info.vocab_size, generation)
        var given = ids
        for _ in 0..<max(generation.maxTokens, 0) {
            guard let logits = try append(given, cancelled) else { return }
            let id = try sampler.draw(logits, held)
            if model.endIds.contains(id) { break }
            let piece = try writer.push(id)
            if !piece.isEmpty { give(piece) }
            if writer.isStopped { return }
            if overflow != .slide && held.count == context { break }
            given = [id]
        }
        let rest = try writer.end()
        if !rest.isEmpty { give(rest) }
    }

    /// Logits after the last token; nil when cancelled. A cancel that came too late for the text it
    /// was meant for is none of this one, so the append is done again.
    private func append(
        _ ids: [Int32], _ cancelled: Cancelled
    ) throws -> UnsafePointer<Float>? {
        let before = overflow == .slide ? held : []
        var given = ids
        while !cancelled.isSet {
            var logits: UnsafePointer<Float>?
            let status = bcq_session_append(session, given, Int64(given.count), &logits)
            if status == BCQ_CANCELLED {
                if held.count < before.count { given = slid(before, ids) }
                continue
            }
            try BcqError.check(status)
            return logits
        }
        return nil
    }

    /// What a slide that was cancelled had still to compute behind the first `keep` tokens.
    private func slid(_ before: [Int32], _ ids: [Int32]) -> [Int32] {
        let left = min((before.count - keep) / 2, context - keep - ids.count)
        return before.suffix(left) + ids
    }

    /// A copy of the session's own list; on the queue only.
    private var held: [Int32] {
        let num = Int(bcq_session_position(session))
        return Array(UnsafeBufferPointer(start: bcq_session_ids(session), count: num))
    }

    private func common(_ ids: [Int32]) throws -> Int {
        var num: Int64 = 0
        try BcqError.check(bcq_session_match(session, ids, Int64(ids.count), &num))
        return Int(num)
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
