package org.bcquant;

import java.nio.charset.StandardCharsets;

/** As in BcqNative.kt. */
final class BcqException extends Exception {
    private static final long serialVersionUID = 1;
    final int status;

    BcqException(int status, byte[] text) {
        super(new String(text, StandardCharsets.UTF_8));
        this.status = status;
    }
}
