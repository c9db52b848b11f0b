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
import org.bcquant.Overflow
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

/** A talk that is saved after its prompt and taken up again, and a prompt that shares a beginning. */
private fun checkSaved(model: BcqModel, ids: IntArray, file: File) {
    model.openSession(128).use { session ->
        session.generate(ids, greedy.copy(maxTokens = 1)) { }
        say("held", session.ids.toList())
        session.save(file)
    }
    model.loadSession(file, 100).use { session ->
        val rest = session.keepPrefixOf(ids)
        say("rest", rest.toList() + session.position)
        val drawn = mutableListOf<Int>()
        session.generateIds(rest, greedy) { drawn += it; true }
        say("loaded_drawn", drawn)
        val other = ids.copyOf(ids.size).also { it[3] = it[3] xor 1 }
        say("match", session.match(other))
        say("other_rest", session.keepPrefixOf(other).size + session.position)
    }
    refuse("small_context") { model.loadSession(file, 4) }
}

/** Texts that outgrow 32 tokens; a cancel from before a text begins is none of it. */
private fun checkOverflow(model: BcqModel, ids: IntArray) {
    for (overflow in Overflow.entries) {
        model.openSession(32).use { session ->
            session.setOverflow(overflow, if (overflow == Overflow.SLIDE) 5 else 0)
            val drawn = mutableListOf<Int>()
            say("finish_$overflow", session.generateIds(ids, greedy) { drawn += it; true })
            say("num_$overflow", drawn.size)
            say("kept_$overflow", session.ids.take(5))
        }
    }
    val both = List(2) { number ->
        model.openSession(32).use { session ->
            session.setOverflow(Overflow.SLIDE, 5)
            session.generateIds(IntArray(31) { 3 + it }, greedy.copy(maxTokens = 2)) { true }
            if (number == 1) session.cancel() // and now an append that must slide
            val drawn = mutableListOf<Int>()
            session.generateIds(intArrayOf(9, 8), greedy.copy(maxTokens = 9)) { drawn += it; true }
            drawn + session.ids.toList()
        }
    }
    say("slide_after_cancel", both[0] == both[1] && both[0].size > 9)
}

private fun checkSignature(model: BcqModel, file: File, key: ByteArray) {
    val signature = File("${file.path}.sig").readBytes()
    model.checkSignature(signature, key)
    refuse("other_key") { model.checkSignature(signature, key.reversedArray()) }
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

@OptIn(ExperimentalStdlibApi::class)
fun main(args: Array<String>) {
    val file = File(args[0])
    val prompt = File(args[1]).readText()
    say("plan", BcqModel.plan(file, 128, exact).totalBytes)
    val model = BcqModel.open(file, exact, checkAll = true)
    val ids = model.encode(prompt)
    say("encoded", ids.toList())
    val greeting = Message(Role.USER, "\u4f60\u597d \ud83d\ude00")
    val messages = listOf(Message(Role.SYSTEM, "Be brief."), greeting)
    say("chat", model.renderChat(messages))
    say("chat_ids", model.encodeChat(messages).toList())
    checkTexts(model, ids)
    checkSeeds(model, ids)
    checkThreads(model, ids)
    checkSaved(model, ids, File(args[2]))
    checkOverflow(model, ids)
    checkSignature(model, file, args[3].hexToByteArray())
    val left = model.openSession(16)
    model.close()
    model.close()
    left.close()
    refuse("closed_model") { model.encode(prompt) }
    refuse("no_file") { BcqModel.open(File("/n\u00f6/\u6a21\ud83d\ude00.bcq")) }
    println("done true")
}
