package org.bcquant

import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.launch

/**
 * [BcqSession.generate] as a cold flow of pieces of text, computed on Dispatchers.Default.
 *
 * Cancelling the collector cancels the generating too, even within a long prompt, and returns only
 * when the session is free again. A slow collector slows the generating down.
 */
fun BcqSession.textFlow(
    ids: IntArray, generation: Generation = Generation(), isContinuation: Boolean = true,
): Flow<String> = callbackFlow {
    launch(Dispatchers.Default) {
        generate(ids, generation, isContinuation) {
            // A cancel from before generate() began was of no text yet.
            if (trySendBlocking(it).isFailure) this@textFlow.cancel()
        }
        channel.close()
    }
    awaitClose { this@textFlow.cancel() }
}
