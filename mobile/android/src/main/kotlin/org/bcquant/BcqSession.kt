package org.bcquant

import java.io.ByteArrayOutputStream
import java.io.Closeable
import java.io.File

/** How tokens are drawn; the defaults are greedy. See bcq_sampling in runtime.h. */
data class Sampling(
    val temperature: Float = 0f,
    val topK: Int = 0,
    val topP: Float = 1f,
    val minP: Float = 0f,
    val repetitionPenalty: Float = 1f,
    val presencePenalty: Float = 0f,
)

/**
 * How a text is made.
 *
 * @property maxTokens most tokens to draw
 * @property seed of the random numbers: the same seed gives the same text on every phone
 * @property stops strings that end the text and are not shown
 */
data class Generation(
    val maxTokens: Int = 256,
    val sampling: Sampling = Sampling(),
    val seed: Long = 0,
    val stops: List<String> = emptyList(),
)

/** Why a text ended; STOPPED: by a stop string, or by the one who asked for ids. */
enum class Finish { END_TOKEN, STOPPED, MAX_TOKENS, CONTEXT_FULL, CANCELLED }

/** What happens when a text outgrows its context; the number is bcq_overflow. */
enum class Overflow { ERROR, STOP, SLIDE }

/**
 * One conversation's tokens over a model, from [BcqModel.openSession].
 *
 * One call at a time: others wait, but [cancel] and [close] may come from any thread at any time.
 */
class BcqSession internal constructor(
    private val model: BcqModel,
    private var handle: Long,
    private val context: Int,
) : Closeable {
    private val calls = Any() // held through every call that computes
    private val life = Any() // held for a moment: no cancel of what is being freed

    @Volatile private var isCancelled = false
    @Volatile private var isClosing = false
    private var overflow = Overflow.ERROR
    private var keep = 0

    /** Tokens held. */
    val position: Int
        get() = synchronized(calls) { BcqNative.position(handle).toInt() }

    /** The ids of the tokens held. */
    val ids: IntArray
        get() = synchronized(calls) { BcqNative.ids(handle) }

    /** How many of the first tokens held are the first of [ids]. */
    fun match(ids: IntArray): Int = synchronized(calls) { BcqNative.match(handle, ids).toInt() }

    /**
     * Forgets what is no beginning of [ids] and gives those of them that are still to be appended,
     * at least the last one: `session.generate(session.keepPrefixOf(prompt)) { ... }` computes of a
     * talk only what is new.
     */
    fun keepPrefixOf(ids: IntArray): IntArray = synchronized(calls) {
        val kept = minOf(BcqNative.match(handle, ids).toInt(), maxOf(ids.size - 1, 0))
        BcqNative.truncate(handle, kept.toLong())
        ids.copyOfRange(kept, ids.size)
    }

    /**
     * Chooses what happens from now on when a text outgrows the context.
     *
     * ERROR, which every session begins with: a prompt that has no room is a BcqException. STOP:
     * as much of it is appended as fits. SLIDE: the oldest tokens behind the first [keep] are
     * forgotten, half of them at a time, and the text goes on; a cancel just then leaves the first
     * [keep].
     */
    fun setOverflow(overflow: Overflow, keep: Int = 0) {
        synchronized(calls) {
            BcqNative.setOverflow(handle, overflow.ordinal, keep.toLong())
            this.overflow = overflow
            this.keep = keep
        }
    }

    /** Writes the tokens held and their caches to [file], for [BcqModel.loadSession]. */
    fun save(file: File) {
        synchronized(calls) { BcqNative.saveSession(handle, file.path.toByteArray()) }
    }

    /** Forgets every token from [position] on: to answer again, or to go back to a prefix. */
    fun truncate(position: Int) {
        synchronized(calls) { BcqNative.truncate(handle, position.toLong()) }
    }

    /**
     * Appends [ids] and draws tokens, giving each to [onId] as it comes, until an end token (which
     * is not given), a false from [onId], or a full context (see [setOverflow]). Blocks: not for
     * the main thread.
     *
     * The last id given may not be held yet: a text that goes on starts with it.
     */
    fun generateIds(
        ids: IntArray, generation: Generation = Generation(), onId: (Int) -> Boolean,
    ): Finish {
        synchronized(calls) { return draw(ids, generation, onId) }
    }

    private fun draw(ids: IntArray, generation: Generation, onId: (Int) -> Boolean): Finish {
        isCancelled = false
        BcqNative.seed(handle, generation.seed)
        var given = ids
        var num = 0
        while (num < generation.maxTokens) {
            if (!appendUnlessCancelled(given)) return Finish.CANCELLED
            val id = sample(generation.sampling)
            if (id in model.endIds) return Finish.END_TOKEN
            num++
            if (!onId(id)) return Finish.STOPPED
            if (isFull()) return Finish.CONTEXT_FULL
            given = intArrayOf(id)
        }
        return Finish.MAX_TOKENS
    }

    /**
     * As [generateIds], but gives text in whole characters to [onText] and heeds stop strings.
     *
     * @param ids of a prompt, from [BcqModel.encode] or [BcqModel.encodeChat]
     * @param isContinuation the text goes on after a prompt, so a leading space is kept; false for
     *   an answer of a chat
     */
    fun generate(
        ids: IntArray, generation: Generation = Generation(), isContinuation: Boolean = true,
        onText: (String) -> Unit,
    ): Finish {
        synchronized(calls) { return write(ids, generation, isContinuation, onText) }
    }

    private fun write(
        ids: IntArray, generation: Generation, isContinuation: Boolean, onText: (String) -> Unit,
    ): Finish {
        val stops = Array(generation.stops.size) { generation.stops[it].toByteArray() }
        BcqNative.begin(handle, isContinuation, stops)
        val finish = draw(ids, generation) { id ->
            give(BcqNative.push(handle, id), onText)
            !BcqNative.isStopped(handle)
        }
        val rest = ByteArrayOutputStream()
        rest.write(BcqNative.endIds(handle))
        val isStopped = BcqNative.isStopped(handle)
        rest.write(BcqNative.endStops(handle))
        give(rest.toByteArray(), onText)
        return if (isStopped) Finish.STOPPED else finish
    }

    /** Ends the generating that runs now, from any thread, within a layer's time. */
    fun cancel() {
        isCancelled = true
        synchronized(life) { BcqNative.cancel(handle) }
    }

    /** Cancels, waits for the call that runs, and frees. A second close does nothing. */
    override fun close() {
        isClosing = true
        cancel()
        synchronized(calls) {
            synchronized(life) {
                BcqNative.closeSession(handle)
                handle = 0
            }
        }
        model.forget(this)
    }

    /** A cancel that came too late for the text that it was meant for is no cancel of this one. */
    private fun appendUnlessCancelled(ids: IntArray): Boolean {
        val held = if (overflow == Overflow.SLIDE) BcqNative.ids(handle) else IntArray(0)
        var given = ids
        while (!isCancelled && !isClosing) {
            try {
                BcqNative.append(handle, given)
                return true
            } catch (error: BcqException) {
                if (error.status != BcqException.CANCELLED) throw error
                if (BcqNative.position(handle) < held.size) given = slid(held, ids)
            }
        }
        return false
    }

    /** What a slide that was cancelled had still to compute behind the first [keep] tokens. */
    private fun slid(held: IntArray, ids: IntArray): IntArray {
        val left = minOf((held.size - keep) / 2, context - keep - ids.size)
        return held.copyOfRange(held.size - left, held.size) + ids
    }

    private fun sample(s: Sampling): Int = BcqNative.sample(
        handle, s.temperature, s.topK, s.topP, s.minP, s.repetitionPenalty, s.presencePenalty,
    )

    private fun isFull(): Boolean =
        overflow != Overflow.SLIDE && BcqNative.position(handle) >= context

    private fun give(bytes: ByteArray, onText: (String) -> Unit) {
        if (bytes.isNotEmpty()) onText(String(bytes, Charsets.UTF_8))
    }
}
