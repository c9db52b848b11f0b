package org.bcquant

/**
 * The natives of mobile/android/jni, which say what each does. Text crosses as UTF-8 bytes only:
 * JNI's own strings are another encoding, and a character may end in a later piece.
 *
 * Nothing here guards a handle; [BcqModel] and [BcqSession] do.
 */
internal object BcqNative {
    init {
        System.loadLibrary("bcq_jni")
    }

    @JvmStatic external fun plan(
        path: ByteArray, numThreads: Int, activations: Int, kvType: Int, prefillTokens: Int,
        context: Long,
    ): LongArray

    @JvmStatic external fun openModel(
        path: ByteArray, checkAll: Boolean, numThreads: Int, activations: Int, kvType: Int,
        prefillTokens: Int, budgetBytes: Long,
    ): Long

    @JvmStatic external fun closeModel(model: Long)
    @JvmStatic external fun modelInfo(model: Long): LongArray
    @JvmStatic external fun section(model: Long, kind: Int): ByteArray?
    @JvmStatic external fun checkSignature(model: Long, signature: ByteArray, key: ByteArray)
    @JvmStatic external fun encode(model: Long, text: ByteArray, flags: Int): IntArray
    @JvmStatic external fun renderChat(
        model: Long, roles: IntArray, contents: Array<ByteArray>,
    ): ByteArray

    @JvmStatic external fun openSession(model: Long, context: Long): Long
    @JvmStatic external fun loadSession(model: Long, path: ByteArray, context: Long): Long
    @JvmStatic external fun saveSession(session: Long, path: ByteArray)
    @JvmStatic external fun closeSession(session: Long)
    @JvmStatic external fun position(session: Long): Long
    @JvmStatic external fun ids(session: Long): IntArray
    @JvmStatic external fun match(session: Long, ids: IntArray): Long
    @JvmStatic external fun setOverflow(session: Long, overflow: Int, keep: Long)
    @JvmStatic external fun truncate(session: Long, position: Long)
    @JvmStatic external fun append(session: Long, ids: IntArray)
    @JvmStatic external fun cancel(session: Long)
    @JvmStatic external fun seed(session: Long, seed: Long)
    @JvmStatic external fun sample(
        session: Long, temperature: Float, topK: Int, topP: Float, minP: Float,
        repetitionPenalty: Float, presencePenalty: Float,
    ): Int

    @JvmStatic external fun begin(session: Long, isContinuation: Boolean, stops: Array<ByteArray>)
    @JvmStatic external fun push(session: Long, id: Int): ByteArray
    @JvmStatic external fun isStopped(session: Long): Boolean
    @JvmStatic external fun endIds(session: Long): ByteArray
    @JvmStatic external fun endStops(session: Long): ByteArray
}

/** What the runtime refused: [status] is a bcq_status, the message one sentence. */
class BcqException(val status: Int, text: ByteArray) : Exception(String(text, Charsets.UTF_8)) {
    companion object {
        const val CANCELLED = 8
    }
}
