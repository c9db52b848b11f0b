package org.bcquant

import java.io.Closeable
import java.io.File

/** How a session keeps keys and values; the number is bcq_kv_type. */
enum class KvType { F32, F16, INT8 }

/** Who said something; the number is bcq_role. */
enum class Role { SYSTEM, USER, ASSISTANT }

data class Message(val role: Role, val content: String)

/**
 * How a model computes.
 *
 * @property numThreads 1 to 256; 0: one for each big core
 * @property activations 0 exact, 1 int8, 2 int8 by token; -1: as the package says
 * @property prefillTokens of a prompt that are computed at once, 1 to 512; 0: 128
 * @property budgetBytes of the model and all its sessions; more is refused. 0: no limit
 */
data class ModelOptions(
    val numThreads: Int = 0,
    val activations: Int = -1,
    val kvType: KvType = KvType.F16,
    val prefillTokens: Int = 0,
    val budgetBytes: Long = 0,
)

/** Bytes in use; weights are clean pages of the file, which Android may drop and read again. */
data class MemoryPlan(
    val weightBytes: Long,
    val tableBytes: Long,
    val scratchBytes: Long,
    val kvBytes: Long,
    val totalBytes: Long,
)

/**
 * A package (.bcq) and the model over it. Any thread may call it; sessions share it.
 *
 * [close] closes the sessions first, so nothing is freed under one that still computes.
 */
class BcqModel private constructor(private var handle: Long) : Closeable {
    private val sessions = mutableSetOf<BcqSession>()

    /** Tokens of the vocabulary. */
    val vocabSize: Int

    /** Most tokens of a session. */
    val maxPositions: Int

    /** Whether there is a tokenizer; without one only ids go in and out. */
    val hasTokenizer: Boolean

    /** Tokens that end an answer. */
    val endIds: Set<Int>

    init {
        val info = BcqNative.modelInfo(handle)
        vocabSize = info[0].toInt()
        maxPositions = info[1].toInt()
        hasTokenizer = info[2] != 0L
        endIds = info.drop(3).map { it.toInt() }.toSet()
    }

    /**
     * Ids of [text].
     *
     * @param addSpecial begin and end tokens as the model wants them
     * @param parseSpecial special tokens spelled in the text become their ids
     */
    @Synchronized
    fun encode(text: String, addSpecial: Boolean = true, parseSpecial: Boolean = false): IntArray {
        val flags = (if (addSpecial) 1 else 0) or (if (parseSpecial) 2 else 0)
        return BcqNative.encode(handle, text.toByteArray(), flags)
    }

    /** The prompt of a conversation that ends where the assistant is to answer. */
    @Synchronized
    fun renderChat(messages: List<Message>): String {
        val roles = IntArray(messages.size) { messages[it].role.ordinal }
        val contents = Array(messages.size) { messages[it].content.toByteArray() }
        return BcqNative.renderChat(handle, roles, contents).toString(Charsets.UTF_8)
    }

    /** Ids of a conversation that ends where the assistant is to answer. */
    fun encodeChat(messages: List<Message>): IntArray =
        encode(renderChat(messages), addSpecial = false, parseSpecial = true)

    /** A section of text, 65 to 69 of docs/formats/bcq_package_v1.md; null where there is none. */
    @Synchronized
    fun section(kind: Int): String? =
        BcqNative.section(handle, kind)?.toString(Charsets.UTF_8)

    /** A conversation's state of at most [context] tokens. */
    @Synchronized
    fun openSession(context: Int = maxPositions): BcqSession {
        val session = BcqSession(this, BcqNative.openSession(handle, context.toLong()), context)
        sessions += session
        return session
    }

    /**
     * A session that goes on where the one was that [BcqSession.save] wrote to [file].
     *
     * @throws BcqException damaged, of another model or type of cache, or longer than [context]
     */
    @Synchronized
    fun loadSession(file: File, context: Int = maxPositions): BcqSession {
        val path = file.path.toByteArray()
        val loaded = BcqNative.loadSession(handle, path, context.toLong())
        val session = BcqSession(this, loaded, context)
        sessions += session
        return session
    }

    /**
     * Passes only if [signature], the bytes of MODEL.bcq.sig, was made of this package by the owner
     * of [publicKey], 32 bytes that the app brings. The model was opened with checkAll.
     *
     * @throws BcqException no signature, a damaged one, another key's or another package's
     */
    @Synchronized
    fun checkSignature(signature: ByteArray, publicKey: ByteArray) {
        BcqNative.checkSignature(handle, signature, publicKey)
    }

    /** Cancels and closes what is still open. A second close does nothing. */
    override fun close() {
        // Not under this model's lock: a session that closes itself takes its own lock first.
        synchronized(this) { sessions.toList() }.forEach { it.close() }
        synchronized(this) {
            check(sessions.isEmpty()) { "a session was opened while the model closed" }
            BcqNative.closeModel(handle)
            handle = 0
        }
    }

    @Synchronized
    internal fun forget(session: BcqSession) {
        sessions -= session
    }

    companion object {
        /**
         * Opens [file], shard 0 of a sharded package. Seconds of work with [checkAll] (every
         * byte's SHA-256 on [options]' threads, for a file that was just downloaded): not for the
         * main thread.
         *
         * @throws BcqException damaged, too new, or above the budget
         */
        fun open(
            file: File, options: ModelOptions = ModelOptions(), checkAll: Boolean = false,
        ): BcqModel {
            val handle = with(options) {
                BcqNative.openModel(
                    file.path.toByteArray(), checkAll, numThreads, activations, kvType.ordinal,
                    prefillTokens, budgetBytes,
                )
            }
            return BcqModel(handle)
        }

        /** What a model with one session of [context] tokens will use, before it is opened. */
        fun plan(file: File, context: Int, options: ModelOptions = ModelOptions()): MemoryPlan {
            val bytes = with(options) {
                BcqNative.plan(
                    file.path.toByteArray(), numThreads, activations, kvType.ordinal,
                    prefillTokens, context.toLong(),
                )
            }
            return MemoryPlan(bytes[0], bytes[1], bytes[2], bytes[3], bytes[4])
        }
    }
}
