/// Normalizes texts of its input: nfc_filter < IN > OUT. Both hold u32 bytes and the text, one
/// after the other. 0 when all was read and written.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/nfc.h"

int main() {
  bcq::NfcSpace space;
  uint32_t bytes = 0;
  while (fread(&bytes, sizeof(bytes), 1, stdin) == 1) {
    // Of the exact size, so that a sanitizer sees a read beyond it.
    uint8_t* const text = static_cast<uint8_t*>(malloc(bytes > 0 ? bytes : 1));
    if (fread(text, 1, bytes, stdin) != bytes) return 1;
    const uint8_t* data = text;
    size_t num = bytes;
    if (!bcq::normalize_nfc(&data, &num, &space)) return 2;
    const uint32_t out = static_cast<uint32_t>(num);
    if (fwrite(&out, sizeof(out), 1, stdout) != 1 || fwrite(data, 1, num, stdout) != num) return 3;
    free(text);
  }
  return ferror(stdin) != 0;
}
