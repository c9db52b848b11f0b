package org.bcquant;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HexFormat;

/** Calls every native and prints what it says, a "name value" a line; tests/mobile/test_jni.py. */
final class Check {
    private interface Call {
        void run() throws Exception;
    }

    private static final int NUM_TOKENS = 60;

    private static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static void say(String name, Object value) {
        System.out.println(name + " " + value);
    }

    private static void refuse(String name, Call call) {
        try {
            call.run();
            say(name, "nothing was thrown");
        } catch (BcqException error) {
            say(name, error.status + " " + error.getMessage());
        } catch (Exception error) {
            say(name, error);
        }
    }

    private static void pieces(String name, long session, int[] ids, byte[]... stops) {
        HexFormat hex = HexFormat.of();
        StringBuilder line = new StringBuilder();
        BcqNative.begin(session, true, stops);
        for (int id : ids) line.append(hex.formatHex(BcqNative.push(session, id))).append(',');
        line.append(hex.formatHex(BcqNative.endIds(session))).append(',');
        say(name, line.append(hex.formatHex(BcqNative.endStops(session))));
        say(name + "_stopped", BcqNative.isStopped(session));
    }

    private static int[] greedy(long session, int[] prompt, float presencePenalty) {
        int[] drawn = new int[NUM_TOKENS];
        int[] given = prompt;
        for (int i = 0; i < NUM_TOKENS; i++) {
            BcqNative.append(session, given);
            drawn[i] = BcqNative.sample(session, 0, 0, 1, 0, 1, presencePenalty);
            given = new int[] {drawn[i]};
        }
        return drawn;
    }

    private static void conversation(long model) throws Exception {
        byte[][] contents = {utf8("Be brief."), utf8("\u4f60\u597d \ud83d\ude00")};
        byte[] prompt = BcqNative.renderChat(model, new int[] {0, 1}, contents);
        say("chat", HexFormat.of().formatHex(prompt));
        say("chat_ids", Arrays.toString(BcqNative.encode(model, prompt, 2)));
    }

    /** A package of weights alone, in shards that are links. */
    private static void withoutTokenizer(String path) throws Exception {
        long model = BcqNative.openModel(utf8(path), true, 1, 0, 0, 0, 0);
        long session = BcqNative.openSession(model, 128);
        say("plain_info", Arrays.toString(BcqNative.modelInfo(model)));
        say("plain_drawn", Arrays.toString(greedy(session, new int[] {1, 5, 9}, 0)));
        refuse("no_tokenizer", () -> BcqNative.encode(model, utf8("a"), 0));
        refuse("no_text", () -> BcqNative.begin(session, true, new byte[0][]));
        refuse("no_chat", () -> BcqNative.renderChat(model, new int[] {1}, new byte[][] {{65}}));
        BcqNative.closeSession(session);
        BcqNative.closeModel(model);
    }

    /** Saves after the prompt, goes on elsewhere, and comes back. */
    private static void savedSession(long model, int[] prompt, String state) throws Exception {
        long session = BcqNative.openSession(model, 128);
        BcqNative.append(session, prompt);
        BcqNative.saveSession(session, utf8(state));
        say("held", Arrays.toString(BcqNative.ids(session)));
        int[] other = prompt.clone();
        other[3] ^= 1;
        say("match", BcqNative.match(session, other) + " " + BcqNative.match(session, prompt));
        BcqNative.closeSession(session);
        session = BcqNative.loadSession(model, utf8(state), 100);
        say("loaded_held", Arrays.toString(BcqNative.ids(session)));
        refuse("loaded_no_logits", () -> sampled(BcqNative.loadSession(model, utf8(state), 100)));
        int[] last = {prompt[prompt.length - 1]};
        BcqNative.truncate(session, prompt.length - 1);
        say("loaded_drawn", Arrays.toString(greedy(session, last, 0)));
        BcqNative.closeSession(session);
        refuse("small_context", () -> BcqNative.loadSession(model, utf8(state), 4));
        refuse("no_state", () -> BcqNative.loadSession(model, utf8(state + "?"), 100));
        refuse("zero_in_state", () -> BcqNative.loadSession(model, utf8("a\0b"), 100));
    }

    private static void sampled(long session) throws Exception {
        try {
            BcqNative.sample(session, 0, 0, 1, 0, 1, 0);
        } finally {
            BcqNative.closeSession(session);
        }
    }

    /** What each policy does with a text that outgrows 24 tokens. */
    private static void overflow(long model, int[] prompt) throws Exception {
        int[] twenty = Arrays.copyOf(prompt, 20);
        for (int policy = 0; policy < 3; policy++) {
            long session = BcqNative.openSession(model, 24);
            BcqNative.setOverflow(session, policy, policy == 2 ? 5 : 0);
            BcqNative.append(session, twenty);
            refuse("overflow_" + policy, () -> BcqNative.append(session, Arrays.copyOf(prompt, 8)));
            say("overflow_ids_" + policy, Arrays.toString(BcqNative.ids(session)));
            refuse("no_policy", () -> BcqNative.setOverflow(session, 3, 0));
            refuse("keep", () -> BcqNative.setOverflow(session, 2, 24));
            BcqNative.closeSession(session);
        }
    }

    private static void signature(long model, String path, byte[] key) throws Exception {
        byte[] signature = Files.readAllBytes(Path.of(path + ".sig"));
        refuse("signed", () -> BcqNative.checkSignature(model, signature, key));
        byte[] damaged = signature.clone();
        damaged[damaged.length - 1] ^= 1;
        refuse("damaged_signature", () -> BcqNative.checkSignature(model, damaged, key));
        refuse("no_signature", () -> BcqNative.checkSignature(model, new byte[0], key));
        refuse("short_key", () -> BcqNative.checkSignature(model, signature, new byte[31]));
        refuse("null_key", () -> BcqNative.checkSignature(model, signature, null));
        long unchecked = BcqNative.openModel(utf8(path), false, 1, 0, 0, 0, 0);
        refuse("unchecked", () -> BcqNative.checkSignature(unchecked, signature, key));
        BcqNative.closeModel(unchecked);
    }

    /** A byte of a weight differs: only a check of all bytes sees it. */
    private static void damagedPackage(String path) throws Exception {
        refuse("damaged", () -> BcqNative.openModel(utf8(path), true, 2, 0, 0, 0, 0));
        long model = BcqNative.openModel(utf8(path), false, 2, 0, 0, 0, 0);
        BcqNative.closeModel(model);
        say("damaged_unchecked", model != 0);
    }

    private static void refusals(long model, long session, String path) {
        refuse("no_file", () -> BcqNative.openModel(utf8("/n\u00f6/\u6a21\ud83d\ude00.bcq"),
                false, 1, -1, 1, 0, 0));
        refuse("zero_in_path", () -> BcqNative.openModel(utf8("a\0b"), false, 1, -1, 1, 0, 0));
        refuse("null_path", () -> BcqNative.openModel(null, false, 1, -1, 1, 0, 0));
        refuse("budget", () -> BcqNative.openModel(utf8(path), false, 1, -1, 1, 0, 1000));
        refuse("long_context", () -> BcqNative.plan(utf8(path), 1, -1, 1, 0, 1L << 40));
        refuse("threads", () -> BcqNative.openModel(utf8(path), false, 999, -1, 1, 0, 0));
        refuse("kind", () -> BcqNative.section(model, 1));
        refuse("few_roles", () -> BcqNative.renderChat(model, new int[0], new byte[][] {{65}}));
        refuse("no_role", () -> BcqNative.renderChat(model, new int[] {7}, new byte[][] {{65}}));
        refuse("null_content", () -> BcqNative.renderChat(model, new int[] {1}, new byte[1][]));
        refuse("bad_id", () -> BcqNative.append(session, new int[] {1 << 30}));
        refuse("no_logits", () -> BcqNative.sample(session, 0, 0, 1, 0, 1, 0));
        refuse("null_ids", () -> BcqNative.append(session, null));
        refuse("no_ids", () -> BcqNative.append(session, new int[0]));
        refuse("beyond", () -> BcqNative.truncate(session, 1 << 20));
        refuse("empty_stop", () -> BcqNative.begin(session, true, new byte[][] {{}}));
        refuse("not_begun", () -> BcqNative.push(session, 1));
        BcqNative.truncate(session, 0);
        BcqNative.cancel(session);
        refuse("cancelled", () -> BcqNative.append(session, new int[] {1}));
        refuse("closed_model", () -> BcqNative.encode(0, utf8("a"), 0));
        refuse("closed_session", () -> BcqNative.append(0, new int[] {1}));
    }

    public static void main(String[] args) throws Exception {
        String path = args[0];
        byte[] prompt = utf8(new String(HexFormat.of().parseHex(args[1]), StandardCharsets.UTF_8));
        long model = BcqNative.openModel(utf8(path), true, 1, 0, 0, 0, 0);
        say("info", Arrays.toString(BcqNative.modelInfo(model)));
        say("plan", Arrays.toString(BcqNative.plan(utf8(path), 1, 0, 0, 0, 128)));
        say("origin", new String(BcqNative.section(model, 69), StandardCharsets.UTF_8));
        say("certificate", BcqNative.section(model, 68));
        int[] ids = BcqNative.encode(model, prompt, 1);
        say("encoded", Arrays.toString(ids));
        long session = BcqNative.openSession(model, 128);
        BcqNative.seed(session, 7);
        int[] drawn = greedy(session, ids, 0);
        say("drawn", Arrays.toString(drawn));
        say("position", BcqNative.position(session));
        pieces("pieces", session, drawn);
        pieces("prompt_pieces", session, ids);
        pieces("stopped_pieces", session, ids, utf8("\u6a21"), utf8("never there"));
        BcqNative.truncate(session, 0);
        say("fresh_drawn", Arrays.toString(greedy(session, ids, 1000)));
        conversation(model);
        savedSession(model, ids, args[3]);
        overflow(model, ids);
        signature(model, path, HexFormat.of().parseHex(args[4]));
        damagedPackage(args[5]);
        refusals(model, session, path);
        withoutTokenizer(args[2]);
        for (int i = 0; i < 2; i++) {
            BcqNative.closeSession(session);
            session = 0;
        }
        for (int i = 0; i < 2; i++) {
            BcqNative.closeModel(model);
            model = 0;
        }
        say("done", true);
    }
}
