package org.bcquant;

/** The natives of BcqNative.kt, for a JDK without Kotlin: the same names and signatures. */
final class BcqNative {
    static {
        System.load(System.getProperty("bcq.library"));
    }

    private BcqNative() {}

    static native long[] plan(
            byte[] path, int numThreads, int activations, int kvType, int prefillTokens,
            long context);

    static native long openModel(
            byte[] path, boolean checkAll, int numThreads, int activations, int kvType,
            int prefillTokens, long budgetBytes);

    static native void closeModel(long model);
    static native long[] modelInfo(long model);
    static native byte[] section(long model, int kind);
    static native void checkSignature(long model, byte[] signature, byte[] key);
    static native int[] encode(long model, byte[] text, int flags);
    static native byte[] renderChat(long model, int[] roles, byte[][] contents);
    static native long openSession(long model, long context);
    static native long loadSession(long model, byte[] path, long context);
    static native void saveSession(long session, byte[] path);
    static native void closeSession(long session);
    static native long position(long session);
    static native int[] ids(long session);
    static native long match(long session, int[] ids);
    static native void setOverflow(long session, int overflow, long keep);
    static native void truncate(long session, long position);
    static native void append(long session, int[] ids);
    static native void cancel(long session);
    static native void seed(long session, long seed);

    static native int sample(
            long session, float temperature, int topK, float topP, float minP,
            float repetitionPenalty, float presencePenalty);

    static native void begin(long session, boolean isContinuation, byte[][] stops);
    static native byte[] push(long session, int id);
    static native boolean isStopped(long session);
    static native byte[] endIds(long session);
    static native byte[] endStops(long session);
}
