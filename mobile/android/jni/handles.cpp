#include "handles.h"

#include <string.h>

namespace bcq_jni {

namespace {

/// `bytes` from a byte[], with a zero byte behind them; null with an exception pending.
char* copy_of(JNIEnv* env, jbyteArray array, size_t* bytes) {
  if (array == nullptr) {
    throw_error(env, BCQ_BAD_ARGUMENT, "An array of bytes is null.");
    return nullptr;
  }
  const jsize size = env->GetArrayLength(array);
  char* const data = (char*)malloc((size_t)size + 1);
  if (data == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for a copy of the bytes.");
    return nullptr;
  }
  env->GetByteArrayRegion(array, 0, size, (jbyte*)data);
  data[size] = '\0';
  *bytes = (size_t)size;
  return data;
}

}  // namespace

void throw_error(JNIEnv* env, bcq_status status, const char* text) {
  if (env->ExceptionCheck()) return;  // the first one tells more
  const jclass type = env->FindClass("org/bcquant/BcqException");
  if (type == nullptr) return;
  const jmethodID make = env->GetMethodID(type, "<init>", "(I[B)V");
  const jbyteArray bytes = make == nullptr ? nullptr : to_java(env, text, strlen(text));
  if (bytes == nullptr) return;
  const jobject error = env->NewObject(type, make, (jint)status, bytes);
  if (error != nullptr) env->Throw((jthrowable)error);
}

bool is_ok(JNIEnv* env, bcq_status status) {
  if (status != BCQ_OK) throw_error(env, status, bcq_error_text());
  return status == BCQ_OK;
}

jbyteArray to_java(JNIEnv* env, const void* data, size_t bytes) {
  if (bytes > INT32_MAX) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "A Java array cannot hold so many bytes.");
    return nullptr;
  }
  const jbyteArray array = env->NewByteArray((jsize)bytes);
  if (array != nullptr && bytes > 0)
    env->SetByteArrayRegion(array, 0, (jsize)bytes, (const jbyte*)data);
  return array;
}

Bytes::Bytes(JNIEnv* env, jbyteArray array) { data_ = copy_of(env, array, &size_); }

bool is_path(JNIEnv* env, const Bytes& path) {
  if (path.data() == nullptr) return false;
  if (strlen(path.data()) == path.size()) return true;
  throw_error(env, BCQ_BAD_ARGUMENT, "The path has a zero byte in it.");
  return false;
}

ByteLists::ByteLists(JNIEnv* env, jobjectArray arrays) {
  if (arrays == nullptr) {
    throw_error(env, BCQ_BAD_ARGUMENT, "A list of strings is null.");
    return;
  }
  const jsize num = env->GetArrayLength(arrays);
  data_ = (char**)calloc((size_t)num + 1, sizeof(char*));
  sizes_ = (size_t*)calloc((size_t)num + 1, sizeof(size_t));
  if (data_ == nullptr || sizes_ == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for a list of strings.");
    return;
  }
  while (num_ < num) {
    const jbyteArray one = (jbyteArray)env->GetObjectArrayElement(arrays, num_);
    data_[num_] = copy_of(env, one, &sizes_[num_]);
    if (data_[num_] == nullptr) return;
    env->DeleteLocalRef(one);  // a list may be longer than the table of local references
    num_++;
  }
  is_valid_ = true;
}

ByteLists::~ByteLists() {
  for (int32_t i = 0; i < num_; i++) free(data_[i]);
  free(data_);
  free(sizes_);
}

}  // namespace bcq_jni
