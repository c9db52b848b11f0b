import CBcq

/// Draws tokens with memory of its own.
final class Sampler {
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
