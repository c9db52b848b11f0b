import java.io.File
import kotlin.concurrent.thread
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.bcquant.BcqException
import org.bcquant.BcqModel
import org.bcquant.Finish
import org.bcquant.Generation
import org.bcquant.KvType
import org.bcquant.Message
import org.bcquant.ModelOptions
import org.bcquant.Role
import org.bcquant.Sampling
import org.bcquant.textFlow

/** Uses the library as an app does and prints what it gives; tests/mobile/test_jni.py. */

private val greedy = Generation(maxTokens = 60)
private val exact = ModelOptions(numThreads = 1, activations = 0, kvType = KvType.F32)

@OptIn(ExperimentalStdlibApi::class)
private fun say(name: String, value: Any) {
    val shown = if (value is String) value.toByteArray().toHexString() else value.toString()
    println("$name $shown")
}

private fun refuse(name: String, call: () -> Unit) {
    try {
        call()
        println("$name nothing was thrown")
    } catch (error: BcqException) {
        println("$name ${error.status} ${error.message}")
    }
}

private fun checkTexts(model: BcqModel, ids: IntArray) {
    model.openSession(128).use { session ->
        val drawn = mutableListOf<Int>()
        say("ids_finish", session.generateIds(ids, greedy) { drawn += it; true })
        say("drawn", drawn)
        session.truncate(0)
        val pieces = mutableListOf<String>()
        say("text_finish", session.generate(ids, greedy) { pieces += it })
        say("text", pieces.joinToString(""))
        session.truncate(0)
        say("flow", runBlocking { session.textFlow(ids, greedy).toList() }.joinToString(""))
        session.truncate(0)
        val part = session.textFlow(ids, greedy).buffer(Channel.RENDEZVOUS).take(2)
        say("flow_part", runBlocking { part.toList() }.size)
        say("flow_left", session.position < ids.size + 59)
        session.truncate(0)
        val few = StringBuilder()
        val stop = greedy.copy(stops = listOf(pieces[3]))
        say("stop_finish", session.generate(ids, stop) { few.append(it) })
        say("stopped", few.toString())
        say("stop_at", pieces[3])
        session.truncate(0)
        say("full", session.generateIds(ids, greedy.copy(maxTokens = 1000)) { true })
        refuse("no_room") { session.generateIds(ids) { true } }
    }
}

private fun checkSeeds(model: BcqModel, ids: IntArray) {
    model.openSession(128).use { session ->
        val warm = greedy.copy(sampling = Sampling(temperature = 1.5f, topK = 50), seed = 9)
        val texts = List(2) {
            session.truncate(0)
            buildString { session.generate(ids, warm) { append(it) } }
        }
        say("same_seed", texts[0] == texts[1])
    }
}

/** Cancels, then closes, from another thread while a text is made. */
private fun checkThreads(model: BcqModel, ids: IntArray) {
    val session = model.openSession(128)
    val endings = mutableListOf<Finish>()
    for (end in listOf<() -> Unit>({ session.cancel() }, { session.close() })) {
        val others = mutableListOf<Thread>()
        endings += session.generateIds(ids, greedy) {
            val other = thread { end() }
            others += other
            // A cancel returns at once; a close waits for this very text to end.
            while (other.isAlive && other.state != Thread.State.BLOCKED) Thread.onSpinWait()
            true
        }
        others.forEach { it.join() }
        say("others", others.size)
    }
    say("endings", endings)
    session.close()
    refuse("closed_session") { session.generateIds(ids) { true } }
}

fun main(args: Array<String>) {
    val file = File(args[0])
    val prompt = File(args[1]).readText()
    say("plan", BcqModel.plan(file, 128, exact).totalBytes)
    val model = BcqModel.open(file, exact, checkAll = true)
    val ids = model.encode(prompt)
    say("encoded", ids.toList())
    val greeting = Message(Role.USER, "\u4f60\u597d \ud83d\ude00")
    val messages = listOf(Message(Role.SYSTEM, "Be brief."), greeting)
    say("chat_ids", model.encodeChat(messages).toList())
    checkTexts(model, ids)
    checkSeeds(model, ids)
    checkThreads(model, ids)
    val left = model.openSession(16)
    model.close()
    model.close()
    left.close()
    refuse("closed_model") { model.encode(prompt) }
    refuse("no_file") { BcqModel.open(File("/n\u00f6/\u6a21\ud83d\ude00.bcq")) }
    println("done true")
}
