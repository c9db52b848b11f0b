/// Natives of org.bcquant.BcqNative about sessions; see model_jni.cpp for what handles are.
#include <string.h>

#include "handles.h"

using namespace bcq_jni;

namespace {

/// The session behind a handle; null with an exception pending.
Session* session_of(JNIEnv* env, jlong handle) {
  if (handle == 0) throw_error(env, BCQ_BAD_ARGUMENT, "The session is closed.");
  return (Session*)(intptr_t)handle;
}

void end_text(Session* session) {
  bcq_stream_destroy(session->stream);
  bcq_stop_destroy(session->stop);
  session->stream = nullptr;
  session->stop = nullptr;
  session->is_stopped = 0;
}

void destroy(Session* session) {
  end_text(session);
  bcq_session_destroy(session->session);
  free(session->logits);
  free(session->scratch);
  free(session);
}

/// Room for logits and the sampler.
bool allocate(JNIEnv* env, Session* session) {
  const size_t vocab = (size_t)session->model->info.vocab_size;
  session->logits = (float*)malloc(vocab * sizeof(float));
  session->scratch = malloc(vocab * 8);
  if (session->logits != nullptr && session->scratch != nullptr) return true;
  throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for a session.");
  return false;
}

/// A session over a model's handle with all but the session itself; null with an exception pending.
Session* new_session(JNIEnv* env, jlong model) {
  if (model == 0) {
    throw_error(env, BCQ_BAD_ARGUMENT, "The model is closed.");
    return nullptr;
  }
  Session* const session = (Session*)calloc(1, sizeof(Session));
  if (session == nullptr) {
    throw_error(env, BCQ_OUT_OF_MEMORY, "No memory for a session.");
    return nullptr;
  }
  session->model = (const Model*)(intptr_t)model;
  if (allocate(env, session)) return session;
  destroy(session);
  return nullptr;
}

/// What can be shown of a piece, after stop strings.
jbyteArray shown(JNIEnv* env, Session* session, const char* piece, size_t bytes) {
  if (session->stop == nullptr) return to_java(env, piece, bytes);
  const char* text = nullptr;
  size_t text_bytes = 0;
  if (!is_ok(env,
             bcq_stop_push(session->stop, piece, bytes, &text, &text_bytes, &session->is_stopped)))
    return nullptr;
  return to_java(env, text, text_bytes);
}

/// The session behind a handle, if begin was called; null with an exception pending.
Session* begun(JNIEnv* env, jlong handle) {
  Session* const session = session_of(env, handle);
  if (session == nullptr || session->stream != nullptr) return session;
  throw_error(env, BCQ_BAD_ARGUMENT, "begin() comes before text.");
  return nullptr;
}

}  // namespace

extern "C" {

/// A handle to a session of `context` tokens over a model's handle.
JNIEXPORT jlong JNICALL Java_org_bcquant_BcqNative_openSession(JNIEnv* env, jclass, jlong model,
                                                               jlong context) {
  Session* const session = new_session(env, model);
  if (session == nullptr) return 0;
  if (is_ok(env, bcq_session_create(session->model->model, context, &session->session)))
    return (jlong)(intptr_t)session;
  destroy(session);
  return 0;
}

/// A handle to a session of `context` tokens that goes on where the one saved at `path` was.
JNIEXPORT jlong JNICALL Java_org_bcquant_BcqNative_loadSession(JNIEnv* env, jclass, jlong model,
                                                               jbyteArray path, jlong context) {
  Session* const session = new_session(env, model);
  if (session == nullptr) return 0;
  const Bytes name(env, path);
  if (is_path(env, name) &&
      is_ok(env, bcq_session_load(session->model->model, name.data(), context, &session->session)))
    return (jlong)(intptr_t)session;
  destroy(session);
  return 0;
}

/// Writes the tokens held and their caches to `path`; a file that is there stays whole until then.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_saveSession(JNIEnv* env, jclass, jlong handle,
                                                              jbyteArray path) {
  const Session* const session = session_of(env, handle);
  if (session == nullptr) return;
  const Bytes name(env, path);
  if (is_path(env, name)) is_ok(env, bcq_session_save(session->session, name.data()));
}

/// 0 is allowed.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_closeSession(JNIEnv*, jclass, jlong handle) {
  if (handle != 0) destroy((Session*)(intptr_t)handle);
}

/// Tokens held.
JNIEXPORT jlong JNICALL Java_org_bcquant_BcqNative_position(JNIEnv* env, jclass, jlong handle) {
  const Session* const session = session_of(env, handle);
  return session == nullptr ? 0 : bcq_session_position(session->session);
}

/// The ids of the tokens held.
JNIEXPORT jintArray JNICALL Java_org_bcquant_BcqNative_ids(JNIEnv* env, jclass, jlong handle) {
  const Session* const session = session_of(env, handle);
  if (session == nullptr) return nullptr;
  const jsize num = (jsize)bcq_session_position(session->session);  // below max_positions
  const jintArray made = env->NewIntArray(num);
  if (made != nullptr) env->SetIntArrayRegion(made, 0, num, bcq_session_ids(session->session));
  return made;
}

/// How many of the first tokens held are the first of `ids`.
JNIEXPORT jlong JNICALL Java_org_bcquant_BcqNative_match(JNIEnv* env, jclass, jlong handle,
                                                         jintArray ids) {
  const Session* const session = session_of(env, handle);
  if (session == nullptr) return 0;
  jint* const given = ids == nullptr ? nullptr : env->GetIntArrayElements(ids, nullptr);
  const jsize num = given == nullptr ? 0 : env->GetArrayLength(ids);
  int64_t common = 0;
  const bcq_status status = bcq_session_match(session->session, given, num, &common);
  if (given != nullptr) env->ReleaseIntArrayElements(ids, given, JNI_ABORT);
  return is_ok(env, status) ? common : 0;
}

/// What the appends to come do when there is no room; a bcq_overflow.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_setOverflow(JNIEnv* env, jclass, jlong handle,
                                                              jint overflow, jlong keep) {
  Session* const session = session_of(env, handle);
  if (session != nullptr) is_ok(env, bcq_session_set_overflow(session->session, overflow, keep));
}

/// Forgets every token from `position` on; append before the next sample.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_truncate(JNIEnv* env, jclass, jlong handle,
                                                           jlong position) {
  Session* const session = session_of(env, handle);
  if (session == nullptr) return;
  session->fresh = nullptr;
  is_ok(env, bcq_session_truncate(session->session, position));
}

/// Appends tokens. A failure leaves the session as bcq_session_append says, without logits.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_append(JNIEnv* env, jclass, jlong handle,
                                                         jintArray ids) {
  Session* const session = session_of(env, handle);
  if (session == nullptr) return;
  session->fresh = nullptr;
  jint* const given = ids == nullptr ? nullptr : env->GetIntArrayElements(ids, nullptr);
  const jsize num = given == nullptr ? 0 : env->GetArrayLength(ids);
  const bcq_status status = bcq_session_append(session->session, given, num, &session->fresh);
  if (status != BCQ_OK) session->fresh = nullptr;
  if (given != nullptr) env->ReleaseIntArrayElements(ids, given, JNI_ABORT);
  is_ok(env, status);
}

/// From any thread; the session must be open.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_cancel(JNIEnv*, jclass, jlong handle) {
  if (handle != 0) bcq_session_cancel(((Session*)(intptr_t)handle)->session);
}

/// Sets the state of the random numbers.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_seed(JNIEnv* env, jclass, jlong handle,
                                                       jlong seed) {
  Session* const session = session_of(env, handle);
  if (session != nullptr) session->seed = (uint64_t)seed;
}

/// Draws a token from the logits of the last append, with penalties for the tokens held.
JNIEXPORT jint JNICALL Java_org_bcquant_BcqNative_sample(JNIEnv* env, jclass, jlong handle,
                                                         jfloat temperature, jint top_k,
                                                         jfloat top_p, jfloat min_p,
                                                         jfloat repetition_penalty,
                                                         jfloat presence_penalty) {
  Session* const session = session_of(env, handle);
  if (session == nullptr) return -1;
  if (session->fresh == nullptr) {
    throw_error(env, BCQ_BAD_ARGUMENT, "There are no logits; append tokens first.");
    return -1;
  }
  const int64_t vocab = session->model->info.vocab_size;
  const bcq_sampling sampling = {temperature,        top_k,           top_p, min_p,
                                 repetition_penalty, presence_penalty};
  memcpy(session->logits, session->fresh, (size_t)vocab * sizeof(float));
  int32_t id = -1;
  is_ok(env, bcq_sample(session->logits, vocab, &sampling, bcq_session_ids(session->session),
                        bcq_session_position(session->session), &session->seed, session->scratch,
                        (size_t)vocab * 8, &id));
  return id;
}

/// Starts a text. is_continuation: it goes on after a prompt. stops: end it, unseen.
JNIEXPORT void JNICALL Java_org_bcquant_BcqNative_begin(JNIEnv* env, jclass, jlong handle,
                                                        jboolean is_continuation,
                                                        jobjectArray stops) {
  Session* const session = session_of(env, handle);
  if (session == nullptr) return;
  if (session->model->tokenizer == nullptr) {
    throw_error(env, BCQ_UNSUPPORTED, "The package holds no tokenizer, so there is no text.");
    return;
  }
  const ByteLists lists(env, stops);
  if (!lists.is_valid()) return;
  end_text(session);
  if (!is_ok(env,
             bcq_stream_create(session->model->tokenizer, is_continuation, &session->stream)) ||
      lists.num() == 0)
    return;
  if (!is_ok(env, bcq_stop_create(lists.data(), lists.sizes(), lists.num(), &session->stop)))
    end_text(session);
}

/// Whole UTF-8 characters that `id` completes and that can be shown, maybe none.
JNIEXPORT jbyteArray JNICALL Java_org_bcquant_BcqNative_push(JNIEnv* env, jclass, jlong handle,
                                                             jint id) {
  Session* const session = begun(env, handle);
  const char* text = nullptr;
  size_t bytes = 0;
  if (session == nullptr || !is_ok(env, bcq_stream_push(session->stream, id, &text, &bytes)))
    return nullptr;
  return shown(env, session, text, bytes);
}

/// Whether a stop string was found: no text comes any more.
JNIEXPORT jboolean JNICALL Java_org_bcquant_BcqNative_isStopped(JNIEnv* env, jclass, jlong handle) {
  const Session* const session = begun(env, handle);
  return session != nullptr && session->is_stopped != 0;
}

/// What an incomplete character leaves when the ids end; endStops comes after it.
JNIEXPORT jbyteArray JNICALL Java_org_bcquant_BcqNative_endIds(JNIEnv* env, jclass, jlong handle) {
  Session* const session = begun(env, handle);
  const char* text = nullptr;
  size_t bytes = 0;
  if (session == nullptr || !is_ok(env, bcq_stream_end(session->stream, &text, &bytes)))
    return nullptr;
  return shown(env, session, text, bytes);
}

/// What was held back since it might have become a stop string.
JNIEXPORT jbyteArray JNICALL Java_org_bcquant_BcqNative_endStops(JNIEnv* env, jclass,
                                                                 jlong handle) {
  Session* const session = begun(env, handle);
  const char* text = nullptr;
  size_t bytes = 0;
  if (session == nullptr ||
      (session->stop != nullptr && !is_ok(env, bcq_stop_end(session->stop, &text, &bytes))))
    return nullptr;
  return to_java(env, text, bytes);
}

}  // extern "C"
