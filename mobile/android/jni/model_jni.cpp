/// Natives of org.bcquant.BcqNative about packages, models and text.
///
/// A handle is a pointer in a jlong; 0 is none. BcqModel and BcqSession see to it that a handle is
/// used by one thread at a time and never after its close; a close of 0 does nothing. Every native
/// reports failure as a BcqException, after which what it returns means nothing.
#include "handles.h"

using namespace bcq_jni;

namespace {

constexpr int32_t kTokenizerKind = 64;
constexpr int32_t kChatKind = 66;
constexpr size_t kKeyBytes = 32;

/// The model behind a handle; null with an exception pending.
Model* model_of(JNIEnv* env, jlong handle) {
  if (handle == 0) throw_error(env, BCQ_BAD_ARGUMENT, "The model is closed.");
  return (Model*)(intptr_t)handle;
}

void destroy(Model* model) {
  bcq_tokenizer_destroy(model->tokenizer);
  bcq_model_destroy(model->model);
  bcq_package_close(model->package);
  free(model);
}

bool open_package(JNIEnv* env, jbyteArray path, bcq_package** package) {
  const Bytes name(env, path);
  return is_path(env, name) &&
         is_ok(env, bcq_package_open(name.data(), BCQ_CHECK_STRUCTURE, package));
}

bool open_tokenizer(JNIEnv* env, Model* model) {
  const void* section = nullptr;
  size_t bytes = 0;
  if (!is_ok(env, bcq_package_section(model->package, kTokenizerKind, &section, &bytes)))
    return false;
  return bytes == 0 || is_ok(env, bcq_tokenizer_create(section, bytes, &model->tokenizer));
}

bcq_options options_of(jint num_threads, jint activations, jint kv_type, jint prefill_tokens,
                       jlong budget_bytes) {
  return {num_threads, activations, kv_type, prefill_tokens, (uint64_t)budget_bytes, nullptr};
}

/// Ids of `text` in a new array of *num; null with an exception pending.
int32_t* encoded(JNIEnv* env, const bcq_tokenizer* tokenizer, const Bytes& text, jint flags,
                 size_t* num) {
  const bcq_status asked =
      bcq_tokenizer_encode(tokenizer, text.data(), text.size(), flags, nullptr, 0, num);
  if (!is_ok(env, asked)) return nullptr;
  int32_t* const ids = *num > INT32_MAX ? nullptr : (int32_t*)malloc((*num + 1) * sizeof(int32_t));
  if (ids == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for the ids of the text.");
    return nullptr;
  }
  if (is_ok(env, bcq_tokenizer_encode(tokenizer, text.data(), text.size(), flags, ids, *num, num)))
    return ids;
  free(ids);
  return nullptr;
}

/// A prompt as a new byte[]; null with an exception pending.
jbyteArray rendered(JNIEnv* env, const void* frames, size_t frames_bytes,
                    const bcq_message* messages, int32_t num) {
  size_t bytes = 0;
  if (!is_ok(env, bcq_chat_render(frames, frames_bytes, messages, num, nullptr, 0, &bytes)))
    return nullptr;
  char* const prompt = bytes == SIZE_MAX ? nullptr : (char*)malloc(bytes + 1);
  if (prompt == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for the prompt.");
    return nullptr;
  }
  const bcq_status status =
      bcq_chat_render(frames, frames_bytes, messages, num, prompt, bytes, &bytes);
  const jbyteArray made = is_ok(env, status) ? to_java(env, prompt, bytes) : nullptr;
  free(prompt);
  return made;
}

}  // namespace

extern "C" {

/// {weights, tables, scratch, caches, total} in bytes of a model with a session of `context`.
JNIEXPORT jlongArray JNICALL Java_org_bcquant_BcqNative_plan(JNIEnv* env, jclass, jbyteArray path,
                                                             jint num_threads, jint activations,
                                                             jint kv_type, jint prefill_tokens,
                                                             jlong context) {
  bcq_package* package = nullptr;
  if (!open_package(env, path, &package)) return nullptr;
  const bcq_options options = options_of(num_threads, activations, kv_type, prefill_tokens, 0);
  bcq_plan plan;
  const bool is_planned = is_ok(env, bcq_plan_model(package, &options, context, &plan));
  bcq_package_close(package);
  if (!is_planned) return nullptr;
  const jlong bytes[] = {(jlong)plan.weight_bytes, (jlong)plan.table_bytes,
                         (jlong)plan.scratch_bytes, (jlong)plan.kv_bytes, (jlong)plan.total_bytes};
  const jlongArray made = env->NewLongArray(5);
  if (made != nullptr) env->SetLongArrayRegion(made, 0, 5, bytes);
  return made;
}

/// A handle to a package with its model and tokenizer; check_all: also every section's SHA-256, on
/// `num_threads` threads.
JNIEXPORT jlong JNICALL Java_org_bcquant_BcqNative_openModel(JNIEnv* env, jclass, jbyteArray path,
                                                             jboolean check_all, jint num_threads,
                                                             jint activations, jint kv_type,
                                                             jint prefill_tokens,
                                                             jlong budget_bytes) {
  Model* const model = (Model*)calloc(1, sizeof(Model));
  if (model == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for a model.");
    return 0;
  }
  const bcq_options options =
      options_of(num_threads, activations, kv_type, prefill_tokens, budget_bytes);
  // Not BCQ_CHECK_ALL: that hashes on the calling thread alone.
  if (open_package(env, path, &model->package) &&
      (!check_all || is_ok(env, bcq_package_check(model->package, num_threads))) &&
      is_ok(env, bcq_package_info(model->package, &model->info)) && open_tokenizer(env, model) &&
      is_ok(env, bcq_model_create(model->package, &options, &model->model)))
    return (jlong)(intptr_t)model;
  destroy(model);
  return 0;
}

/// No session may use the model any more. 0 is allowed.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_closeModel(JNIEnv*, jclass, jlong handle) {
  if (handle != 0) destroy((Model*)(intptr_t)handle);
}

/// {vocab_size, max_positions, 1 if there is a tokenizer, end tokens ...}.
JNIEXPORT jlongArray JNICALL Java_org_bcquant_BcqNative_modelInfo(JNIEnv* env, jclass,
                                                                  jlong handle) {
  const Model* const model = model_of(env, handle);
  if (model == nullptr) return nullptr;
  const bcq_model_info& info = model->info;
  jlong values[3 + 8] = {info.vocab_size, info.max_positions, model->tokenizer != nullptr};
  for (int32_t i = 0; i < info.num_eos; i++) values[3 + i] = info.eos[i];
  const jlongArray made = env->NewLongArray(3 + info.num_eos);
  if (made != nullptr) env->SetLongArrayRegion(made, 0, 3 + info.num_eos, values);
  return made;
}

/// A section of text (kinds 64 to 69), null where the package has none.
JNIEXPORT jbyteArray JNICALL Java_org_bcquant_BcqNative_section(JNIEnv* env, jclass, jlong handle,
                                                                jint kind) {
  const Model* const model = model_of(env, handle);
  const void* data = nullptr;
  size_t bytes = 0;
  if (model == nullptr || !is_ok(env, bcq_package_section(model->package, kind, &data, &bytes)))
    return nullptr;
  return data == nullptr ? nullptr : to_java(env, data, bytes);
}

/// Throws unless `signature`, the bytes of MODEL.bcq.sig, was made of this package by the owner of
/// `key`; the model was opened with check_all.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_checkSignature(JNIEnv* env, jclass, jlong handle,
                                                                 jbyteArray signature,
                                                                 jbyteArray key) {
  const Model* const model = model_of(env, handle);
  if (model == nullptr) return;
  const Bytes signed_bytes(env, signature);
  const Bytes key_bytes(env, key);
  if (signed_bytes.data() == nullptr || key_bytes.data() == nullptr) return;
  if (key_bytes.size() != kKeyBytes) {
    throw_error(env, BCQ_BAD_ARGUMENT, "A public key has 32 bytes.");
    return;
  }
  is_ok(env, bcq_package_check_signature(model->package, signed_bytes.data(), signed_bytes.size(),
                                         (const uint8_t*)key_bytes.data()));
}

/// Ids of UTF-8 text; flags as bcq_tokenizer_encode has them.
JNIEXPORT jintArray JNICALL Java_org_bcquant_BcqNative_encode(JNIEnv* env, jclass, jlong handle,
                                                              jbyteArray text, jint flags) {
  const Model* const model = model_of(env, handle);
  if (model == nullptr) return nullptr;
  if (model->tokenizer == nullptr) {
    throw_error(env, BCQ_UNSUPPORTED, "The package holds no tokenizer; append ids instead.");
    return nullptr;
  }
  const Bytes bytes(env, text);
  size_t num = 0;
  int32_t* const ids =
      bytes.data() == nullptr ? nullptr : encoded(env, model->tokenizer, bytes, flags, &num);
  if (ids == nullptr) return nullptr;
  const jintArray made = env->NewIntArray((jsize)num);
  if (made != nullptr) env->SetIntArrayRegion(made, 0, (jsize)num, ids);
  free(ids);
  return made;
}

/// The prompt of a conversation, to be encoded with flags = 2. roles[i] says who said contents[i].
JNIEXPORT jbyteArray JNICALL Java_org_bcquant_BcqNative_renderChat(JNIEnv* env, jclass,
                                                                   jlong handle, jintArray roles,
                                                                   jobjectArray contents) {
  const Model* const model = model_of(env, handle);
  if (model == nullptr) return nullptr;
  const void* frames = nullptr;
  size_t frames_bytes = 0;
  if (!is_ok(env, bcq_package_section(model->package, kChatKind, &frames, &frames_bytes)))
    return nullptr;
  const ByteLists texts(env, contents);
  if (!texts.is_valid()) return nullptr;
  const int32_t num = texts.num();
  if (frames == nullptr || roles == nullptr || env->GetArrayLength(roles) != num) {
    const bool lacks = frames == nullptr;
    throw_error(env, lacks ? BCQ_UNSUPPORTED : BCQ_BAD_ARGUMENT,
                lacks ? "The package has no chat frames; write the prompt yourself."
                      : "There are not as many roles as contents.");
    return nullptr;
  }
  bcq_message* const messages = (bcq_message*)calloc((size_t)num + 1, sizeof(bcq_message));
  if (messages == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for the messages.");
    return nullptr;
  }
  for (int32_t i = 0; i < num; i++) {
    env->GetIntArrayRegion(roles, i, 1, &messages[i].role);
    messages[i].content = texts.data()[i];
    messages[i].content_bytes = texts.sizes()[i];
  }
  const jbyteArray made = rendered(env, frames, frames_bytes, messages, num);
  free(messages);
  return made;
}

}  // extern "C"
