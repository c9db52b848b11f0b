/// What a Java handle stands for, and bytes that cross the border to Java.
#ifndef BCQ_ANDROID_HANDLES_H_
#define BCQ_ANDROID_HANDLES_H_

#include <jni.h>
#include <stdlib.h>

#include "bcq/runtime.h"

namespace bcq_jni {

/// A package, its model and its tokenizer, null where the package has none.
struct Model {
  bcq_package* package;
  bcq_model* model;
  bcq_tokenizer* tokenizer;
  bcq_model_info info;
};

/// A session and all that generating needs. The model must outlive it.
struct Session {
  const Model* model;
  bcq_session* session;
  bcq_stream* stream;  ///< null before begin
  bcq_stop* stop;      ///< null without stop strings
  int32_t is_stopped;  ///< a stop string was found
  const float* fresh;  ///< logits of the last append, null after anything else
  float* logits;       ///< a copy that the sampler may write over
  void* scratch;       ///< of the sampler
  uint64_t seed;
};

/// Throws org.bcquant.BcqException with this status; the text crosses as bytes, since NewStringUTF
/// ends at what is not its own kind of UTF-8.
void throw_error(JNIEnv* env, bcq_status status, const char* text);

/// Throws bcq_error_text() unless `status` is BCQ_OK, which gives true.
bool is_ok(JNIEnv* env, bcq_status status);

/// A new byte[]; null with an exception pending when it cannot be had.
jbyteArray to_java(JNIEnv* env, const void* data, size_t bytes);

/// A copy of a byte[] with a zero byte behind it.
class Bytes {
 public:
  /// Failure (a null array, no memory) leaves an exception pending and data() null.
  Bytes(JNIEnv* env, jbyteArray array);
  ~Bytes() { free(data_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  const char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

/// Whether these bytes were had and hold no zero byte, where the C API would end; false with an
/// exception pending.
bool is_path(JNIEnv* env, const Bytes& path);

/// Copies of every byte[] of a byte[][], as the C API takes lists of strings.
class ByteLists {
 public:
  /// Failure leaves an exception pending and is_valid() false.
  ByteLists(JNIEnv* env, jobjectArray arrays);
  ~ByteLists();
  ByteLists(const ByteLists&) = delete;
  ByteLists& operator=(const ByteLists&) = delete;
  bool is_valid() const { return is_valid_; }
  int32_t num() const { return num_; }
  const char* const* data() const { return data_; }
  const size_t* sizes() const { return sizes_; }

 private:
  char** data_ = nullptr;
  size_t* sizes_ = nullptr;
  int32_t num_ = 0;
  bool is_valid_ = false;
};

}  // namespace bcq_jni

#endif  // BCQ_ANDROID_HANDLES_H_
