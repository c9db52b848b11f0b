import CBcq
import Foundation

/// How a model computes.
public struct BcqOptions: Sendable {
    /// 1 to 256; 0: one for each big core.
    public var numThreads: Int32 = 0
    /// How sessions keep keys and values.
    public var kvType: bcq_kv_type = BCQ_KV_F16
    /// Bytes of the model and all its sessions; more is refused. 0: no limit.
    public var budgetBytes: UInt64 = 0

    public init() {}

    var native: bcq_options {
        bcq_options(
            num_threads: numThreads, activations: -1, kv_type: Int32(kvType.rawValue),
            prefill_tokens: 0, budget_bytes: budgetBytes, tier: nil)
    }
}

/// A package (.bcq) and the model over it. Sessions share it and keep it alive; it is freed with
/// the last of them, so there is nothing to close. What it points at never changes, and the C API
/// lets any thread read it.
public final class BcqModel: @unchecked Sendable {
    private let package: OpaquePointer
    let model: OpaquePointer
    let tokenizer: OpaquePointer?
    let info: bcq_model_info

    /// Tokens that end an answer.
    public let endIds: Set<Int32>

    /// Opens shard 0 of a package. With `checkAll` every byte's SHA-256 is compared, for a file
    /// that was just downloaded: seconds of work, not for the main thread.
    public init(_ file: URL, options: BcqOptions = BcqOptions(), checkAll: Bool = false) throws {
        var package: OpaquePointer?
        var tokenizer: OpaquePointer?
        var model: OpaquePointer?
        var info = bcq_model_info()
        do {
            let check = checkAll ? BCQ_CHECK_ALL : BCQ_CHECK_STRUCTURE
            try BcqError.check(bcq_package_open(file.path, check, &package))
            try BcqError.check(bcq_package_info(package, &info))
            var section: UnsafeRawPointer?
            var bytes = 0
            try BcqError.check(bcq_package_section(package, 64, &section, &bytes))
            if bytes > 0 {
                try BcqError.check(bcq_tokenizer_create(section, bytes, &tokenizer))
            }
            var native = options.native
            try BcqError.check(bcq_model_create(package, &native, &model))
        } catch {
            bcq_tokenizer_destroy(tokenizer)
            bcq_package_close(package)
            throw error
        }
        self.package = package!
        self.model = model!
        self.tokenizer = tokenizer
        self.info = info
        let ends = withUnsafeBytes(of: info.eos) { Array($0.bindMemory(to: Int32.self)) }
        self.endIds = Set(ends.prefix(Int(info.num_eos)))
    }

    deinit {
        bcq_model_destroy(model)
        bcq_tokenizer_destroy(tokenizer)
        bcq_package_close(package)
    }

    /// Most tokens of a session.
    public var maxPositions: Int { Int(info.max_positions) }

    /// Bytes that a session of `context` tokens and its model use, before they are opened.
    public static func plan(
        _ file: URL, context: Int, options: BcqOptions = BcqOptions()
    ) throws -> bcq_plan {
        var package: OpaquePointer?
        try BcqError.check(bcq_package_open(file.path, BCQ_CHECK_STRUCTURE, &package))
        defer { bcq_package_close(package) }
        var native = options.native
        var plan = bcq_plan()
        try BcqError.check(bcq_plan_model(package, &native, Int64(context), &plan))
        return plan
    }

    /// Ids of a text. addSpecial: begin and end tokens as the model wants them; parseSpecial:
    /// special tokens spelled in the text become their ids.
    public func encode(
        _ text: String, addSpecial: Bool = true, parseSpecial: Bool = false
    ) throws -> [Int32] {
        let flags: Int32 = (addSpecial ? 1 : 0) | (parseSpecial ? 2 : 0)
        let bytes = text.utf8.map { CChar(bitPattern: $0) } + [0]
        let size = bytes.count - 1
        var num = 0
        try BcqError.check(bcq_tokenizer_encode(tokenizer, bytes, size, flags, nil, 0, &num))
        var ids = [Int32](repeating: 0, count: num)
        try BcqError.check(bcq_tokenizer_encode(tokenizer, bytes, size, flags, &ids, num, &num))
        return ids
    }
}
