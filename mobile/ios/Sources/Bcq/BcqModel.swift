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

/// Who said something; the number is bcq_role.
public enum BcqRole: Int32, Sendable {
    case system = 0
    case user = 1
    case assistant = 2
}

/// One message of a conversation.
public struct BcqMessage: Sendable {
    public var role: BcqRole
    public var content: String

    public init(_ role: BcqRole, _ content: String) {
        self.role = role
        self.content = content
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

    /// Opens shard 0 of a package. With `checkAll` every byte's SHA-256 is compared on the options'
    /// threads, for a file that was just downloaded: seconds of work, not for the main thread.
    public init(_ file: URL, options: BcqOptions = BcqOptions(), checkAll: Bool = false) throws {
        var package: OpaquePointer?
        var tokenizer: OpaquePointer?
        var model: OpaquePointer?
        var info = bcq_model_info()
        do {
            try BcqError.check(bcq_package_open(file.path, BCQ_CHECK_STRUCTURE, &package))
            // Not BCQ_CHECK_ALL: that hashes on the calling thread alone.
            if checkAll { try BcqError.check(bcq_package_check(package, options.numThreads)) }
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

    /// Passes only if `signature`, the bytes of MODEL.bcq.sig, was made of this package by the owner
    /// of `publicKey`, 32 bytes that the app brings. The model was opened with `checkAll`.
    public func checkSignature(_ signature: Data, publicKey: Data) throws {
        let key = [UInt8](publicKey)
        guard key.count == 32 else {
            let sentence = "A public key has 32 bytes, not \(key.count)."
            throw BcqError(status: UInt32(BCQ_BAD_ARGUMENT.rawValue), description: sentence)
        }
        let bytes = [UInt8](signature)
        try BcqError.check(bcq_package_check_signature(package, bytes, bytes.count, key))
    }

    /// A section of text, 65 to 69 of docs/formats/bcq_package_v1.md; nil where there is none.
    public func section(_ kind: Int32) throws -> String? {
        var data: UnsafeRawPointer?
        var bytes = 0
        try BcqError.check(bcq_package_section(package, kind, &data, &bytes))
        guard let data else { return nil }
        return String(decoding: UnsafeRawBufferPointer(start: data, count: bytes), as: UTF8.self)
    }

    /// Ids of a conversation that ends where the assistant is to answer.
    public func encodeChat(_ messages: [BcqMessage]) throws -> [Int32] {
        try encode(renderChat(messages), addSpecial: false, parseSpecial: true)
    }

    /// The prompt of a conversation that ends where the assistant is to answer.
    public func renderChat(_ messages: [BcqMessage]) throws -> String {
        var frames: UnsafeRawPointer?
        var framesBytes = 0
        try BcqError.check(bcq_package_section(package, 66, &frames, &framesBytes))
        guard frames != nil else {
            let sentence = "The package has no chat frames; write the prompt yourself."
            throw BcqError(status: UInt32(BCQ_UNSUPPORTED.rawValue), description: sentence)
        }
        return try withUTF8(of: messages.map(\.content)) { contents, sizes in
            let native = messages.indices.map { i in
                bcq_message(
                    role: messages[i].role.rawValue, content: contents[i], content_bytes: sizes[i])
            }
            let num = Int32(native.count)
            var size = 0
            try BcqError.check(bcq_chat_render(frames, framesBytes, native, num, nil, 0, &size))
            var prompt = [CChar](repeating: 0, count: size)
            try BcqError.check(
                bcq_chat_render(frames, framesBytes, native, num, &prompt, size, &size))
            return text(prompt, size)
        }
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
