/// The runtime for apps: a package, a model over it, sessions, tokenizer, sampling. Plain C.
///
/// No call throws, aborts or prints; each returns a bcq_status, and bcq_error_text() says in one
/// sentence what was wrong. Strings are UTF-8 with a length; nothing is assumed to end in a zero
/// byte unless it says so. A model may be shared by any number of sessions on any threads; one
/// session, like one stream, belongs to one thread at a time, except bcq_session_cancel.
#ifndef BCQ_RUNTIME_H_
#define BCQ_RUNTIME_H_

#include "bcq/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bcq_package bcq_package;
typedef struct bcq_model bcq_model;
typedef struct bcq_session bcq_session;
typedef struct bcq_tokenizer bcq_tokenizer;
typedef struct bcq_stream bcq_stream;

/// One sentence about the last call of this thread that did not return BCQ_OK; never null.
const char* bcq_error_text(void);

// ---- package ----

/// What a model is, from the package's model block.
typedef struct bcq_model_info {
  int64_t vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim,
      max_positions;
  float eps;
  int32_t is_alibi, ties_head, activations;  ///< activations: bcq_precision of the package
  int32_t bos, pad;                          ///< -1: none
  int32_t num_eos;
  int32_t eos[8];
} bcq_model_info;

/// How much of a package is checked when it is opened.
typedef enum bcq_check {
  BCQ_CHECK_STRUCTURE = 0,  ///< header, index and every size; no section is read
  BCQ_CHECK_ALL = 1         ///< also the SHA-256 of every section
} bcq_check;

/// Opens `path` (shard 0 of a sharded package; its siblings are found by name) and maps it.
/// `path` ends in a zero byte. Nothing in the file is trusted (docs/formats/bcq_package_v1.md).
/// Errors, with *package null: BCQ_BAD_ARGUMENT (null, no such file), BCQ_BAD_BLOB (damaged or no
/// package), BCQ_UNSUPPORTED (a version or a feature of the future), BCQ_OUT_OF_MEMORY.
bcq_status bcq_package_open(const char* path, bcq_check check, bcq_package** package);
/// The same over memory that outlives the package: one shard each, in order, each on a multiple of
/// 4 (64 is fastest).
bcq_status bcq_package_open_memory(const void* const* shards, const size_t* shard_bytes,
                                   int32_t num_shards, bcq_check check, bcq_package** package);
/// Null is allowed. No model may use it any more.
void bcq_package_close(bcq_package* package);
/// What the package holds. Errors: BCQ_BAD_ARGUMENT (null).
bcq_status bcq_package_info(const bcq_package* package, bcq_model_info* info);
/// A section of text (kinds 64 to 69) in the mapped file: *bytes is 0 and *data null where there is
/// none. Errors: BCQ_BAD_ARGUMENT (null, another kind).
bcq_status bcq_package_section(const bcq_package* package, int32_t kind, const void** data,
                               size_t* bytes);
/// Compares the SHA-256 of section number `index` of 0 .. *num - 1 with its bytes. Errors:
/// BCQ_BAD_BLOB (it differs; the text names the section), BCQ_BAD_ARGUMENT (no such section).
bcq_status bcq_package_verify(const bcq_package* package, int32_t index, int32_t* num);
/// What BCQ_CHECK_ALL checks, of a package that was opened without it or with it, on `num_threads`
/// threads (1 .. 256; 0: one for each big core) that end with the call; opening checks on the
/// calling thread alone. Nobody else uses the package meanwhile. Errors: BCQ_BAD_BLOB (the text
/// names the first damaged section), BCQ_BAD_ARGUMENT (null, num_threads), BCQ_OUT_OF_MEMORY.
bcq_status bcq_package_check(bcq_package* package, int32_t num_threads);
/// BCQ_OK only if `signature`, the `bytes` bytes of the package's signature file (MODEL.bcq.sig),
/// was made of this package with the private half of `public_key`, 32 bytes of Ed25519. It speaks
/// for the index and so for all sections, once these were compared with it: a package that was not
/// wholly checked (BCQ_CHECK_ALL or bcq_package_check) is refused. Take the key from the app, never
/// from the file's own copy, and the package from where no other program can write.
/// Errors: BCQ_BAD_ARGUMENT (null package or key, not checked yet, a key that is none),
/// BCQ_BAD_BLOB (no signature: null or 0 bytes; a damaged one, another key's, another package's),
/// BCQ_UNSUPPORTED (a version of the future).
bcq_status bcq_package_check_signature(const bcq_package* package, const void* signature,
                                       size_t bytes, const uint8_t* public_key);

// ---- memory plan ----

typedef struct bcq_options {
  int32_t num_threads;     ///< 1 .. 256; 0: one for each big core
  int32_t activations;     ///< bcq_precision, or -1: as the package says
  int32_t kv_type;         ///< bcq_kv_type
  int32_t prefill_tokens;  ///< of a prompt that are computed at once, 1 .. 512; 0: 128
  uint64_t budget_bytes;   ///< of a model and all its sessions: refuse beyond; 0: none
  const char* tier;        ///< null: the best of this CPU; ends in a zero byte
} bcq_options;

/// Bytes in use, known before anything is loaded; beside them only the opened package's rows (72
/// bytes a section) and the threads' stacks.
typedef struct bcq_plan {
  uint64_t weight_bytes;   ///< mapped: clean pages of the file, which the system may drop
  uint64_t table_bytes;    ///< allocated for a model; sessions of the same or less context share it
  uint64_t scratch_bytes;  ///< allocated for a session
  uint64_t kv_bytes;       ///< allocated for a session
  uint64_t total_bytes;    ///< of a model with one session
} bcq_plan;

/// A session of `context` tokens. Errors: BCQ_BAD_ARGUMENT (null, an option out of range),
/// BCQ_BAD_SHAPE (context above max_positions), BCQ_UNSUPPORTED (no kernel for a weight),
/// BCQ_OUT_OF_MEMORY (above the budget; *plan is filled in all the same).
bcq_status bcq_plan_model(const bcq_package* package, const bcq_options* options, int64_t context,
                          bcq_plan* plan);

// ---- model and sessions ----

/// Checks every blob and prepares tables; weights stay where they are. The package must outlive the
/// model. Errors: as bcq_plan_model, BCQ_UNKNOWN_TIER, BCQ_TIER_NOT_HERE.
bcq_status bcq_model_create(const bcq_package* package, const bcq_options* options,
                            bcq_model** model);
/// Null is allowed. No session may use it any more.
void bcq_model_destroy(bcq_model* model);
/// The tier that computes, a static string.
const char* bcq_model_tier(const bcq_model* model);

/// Caches and scratch for `context` tokens. Errors: BCQ_BAD_ARGUMENT, BCQ_BAD_SHAPE,
/// BCQ_OUT_OF_MEMORY.
bcq_status bcq_session_create(bcq_model* model, int64_t context, bcq_session** session);
/// Null is allowed.
void bcq_session_destroy(bcq_session* session);
/// Tokens held.
int64_t bcq_session_position(const bcq_session* session);
/// Forgets every token from `position` on. Errors: BCQ_BAD_ARGUMENT (beyond what is held).
bcq_status bcq_session_truncate(bcq_session* session, int64_t position);
/// The ids of the tokens held, bcq_session_position of them, valid until the next call; null for a
/// null session.
const int32_t* bcq_session_ids(const bcq_session* session);
/// Tells in *common how many of the first tokens held are the first of `ids`: what a new prompt
/// need not compute again. Logits are of appended tokens alone, so truncate to at most num - 1 of
/// them, and append the rest. Errors: BCQ_BAD_ARGUMENT (null, num < 0).
bcq_status bcq_session_match(const bcq_session* session, const int32_t* ids, int64_t num,
                             int64_t* common);
/// Appends tokens; *logits points at vocab_size floats of the last one, valid until the next call.
/// `ids` are not the session's own. Where there is no room, bcq_session_set_overflow decides.
/// Errors: BCQ_BAD_ARGUMENT (null, num < 1, an id outside the vocabulary), BCQ_BAD_SHAPE (no room),
/// BCQ_CANCELLED. After an error the session holds what it held before; only where tokens had to
/// be forgotten (BCQ_OVERFLOW_SLIDE) it holds the first `keep`.
bcq_status bcq_session_append(bcq_session* session, const int32_t* ids, int64_t num,
                              const float** logits);
/// From any thread: the append that runs, or the next one, ends with BCQ_CANCELLED after its
/// current layer.
void bcq_session_cancel(bcq_session* session);

/// What an append does when its tokens and those held are more than the context.
typedef enum bcq_overflow {
  BCQ_OVERFLOW_ERROR = 0,  ///< nothing: BCQ_BAD_SHAPE; every session begins with this
  BCQ_OVERFLOW_STOP = 1,   ///< appends the first tokens that fit, and their logits are the last
                           ///< one's; bcq_session_position tells how many; BCQ_BAD_SHAPE if none
  BCQ_OVERFLOW_SLIDE = 2   ///< forgets the oldest tokens behind the first `keep`, and computes
                           ///< those behind them anew at their new positions
} bcq_overflow;

/// Chooses it for the appends to come. A slide forgets half of the tokens behind `keep`, or as many
/// as it must if that is more, so that it is paid for once in many tokens. What is left is computed
/// as a prompt is: the session is then as one that never held more than bcq_session_ids. `keep` is
/// for BCQ_OVERFLOW_SLIDE, 0 .. context - 1, and 0 for the others; an append of more than
/// context - keep tokens stays BCQ_BAD_SHAPE. Errors: BCQ_BAD_ARGUMENT (null, no such policy,
/// keep).
bcq_status bcq_session_set_overflow(bcq_session* session, int32_t overflow, int64_t keep);

/// Appends tokens and tells in *nll how unlikely they were: the sum of -log p (natural) of ids[1]
/// .. ids[num - 1], each after all before it; exp(*nll / (num - 1)) is the perplexity. Overflow is
/// always an error here. Errors, with *nll 0: as bcq_session_append, BCQ_BAD_ARGUMENT (num < 2).
bcq_status bcq_session_score(bcq_session* session, const int32_t* ids, int64_t num, double* nll);

/// Writes the tokens held and their caches to `path` (layout: mobile/runtime/state.h), by way of
/// `path`.partial, so that a file which is there stays whole until the new one is. Errors:
/// BCQ_BAD_ARGUMENT (null, a file that cannot be written), BCQ_UNSUPPORTED (WebAssembly: no files),
/// BCQ_OUT_OF_MEMORY.
bcq_status bcq_session_save(const bcq_session* session, const char* path);
/// A session of `context` tokens, made as bcq_session_create does, that goes on where the saved one
/// was; the overflow policy is not saved. Nothing in the file is trusted. Errors, with *session
/// null: as bcq_session_create; BCQ_BAD_ARGUMENT (null, no such file), BCQ_BAD_BLOB (damaged or no
/// saved session), BCQ_UNSUPPORTED (a version of the future), BCQ_BAD_SHAPE (of another package or
/// type of cache, or more tokens than `context`).
bcq_status bcq_session_load(bcq_model* model, const char* path, int64_t context,
                            bcq_session** session);

// ---- tokenizer ----

/// Reads a tokenizer section; it keeps pointing into it. Errors: BCQ_BAD_BLOB, BCQ_UNSUPPORTED,
/// BCQ_OUT_OF_MEMORY.
bcq_status bcq_tokenizer_create(const void* section, size_t bytes, bcq_tokenizer** tokenizer);
void bcq_tokenizer_destroy(bcq_tokenizer* tokenizer);
/// Ids of any bytes; what is not UTF-8 is read as U+FFFD, as Python's "replace" does.
/// flags: 1 = put begin and end tokens around it as the model wants, 2 = special tokens spelled in
/// the text become their ids. Writes at most `capacity` ids and always tells *num, how many there
/// are: call with capacity 0 to ask. Errors: BCQ_BAD_ARGUMENT (null, beyond 2^28 bytes, another
/// flag), BCQ_OUT_OF_MEMORY.
bcq_status bcq_tokenizer_encode(const bcq_tokenizer* tokenizer, const char* text, size_t bytes,
                                int32_t flags, int32_t* ids, size_t capacity, size_t* num);
/// Bytes of one token as they appear in text, maybe part of a character; none for a control token
/// or an id that names nothing.
bcq_status bcq_tokenizer_token(const bcq_tokenizer* tokenizer, int32_t id, const char** data,
                               size_t* bytes);

/// Turns ids into text piece by piece; a piece is always whole UTF-8 characters.
/// is_continuation: the text goes on after a prompt, so a leading space is kept.
bcq_status bcq_stream_create(const bcq_tokenizer* tokenizer, int32_t is_continuation,
                             bcq_stream** stream);
void bcq_stream_destroy(bcq_stream* stream);
/// The text that `id` completes, maybe none, valid until the next call. What can be no character is
/// U+FFFD.
bcq_status bcq_stream_push(bcq_stream* stream, int32_t id, const char** text, size_t* bytes);
/// What is left: an incomplete character becomes U+FFFD.
bcq_status bcq_stream_end(bcq_stream* stream, const char** text, size_t* bytes);

// ---- sampling ----

typedef struct bcq_sampling {
  float temperature;         ///< 0: the most likely token
  int32_t top_k;             ///< 0: all
  float top_p;               ///< 1: all
  float min_p;               ///< 0: all; keeps p >= min_p * the largest p
  float repetition_penalty;  ///< 1: none; of every id in `previous`
  float presence_penalty;    ///< 0: none; taken off the logit of every id in `previous`
} bcq_sampling;

/// Draws a token: penalties, temperature, top-k, top-p, min-p, then one draw, each step as
/// bcquant/runtime/numpy_sampler.py has it (ties with the last of the top k stay; greedy ties go to
/// the lowest id). An id in `previous` counts once, one outside the vocabulary not at all.
/// `logits` [vocab_size] is written over with what the draw saw: -infinity where a token was ruled
/// out. *seed is the state of the random numbers (SplitMix64; any value is a start) and advances by
/// one step a draw, by none at temperature 0: the same seed and the same logits give the same
/// tokens on every machine, for no rounding is left to a compiler or a math library
/// (mobile/runtime/sample.cpp). `scratch`: vocab_size * 8 bytes on a multiple of 8; what it holds
/// before and after does not matter. No two arrays overlap; no memory is allocated.
/// Errors: BCQ_BAD_ARGUMENT (null or too small, a vocabulary above 2^21, a setting out of range, a
/// logit that is NaN or +infinity, no finite logit before or after penalties and temperature).
bcq_status bcq_sample(float* logits, int64_t vocab_size, const bcq_sampling* sampling,
                      const int32_t* previous, int64_t num_previous, uint64_t* seed, void* scratch,
                      size_t scratch_bytes, int32_t* id);

// ---- stop strings ----

typedef struct bcq_stop bcq_stop;

/// Ends a text at the first of `num` strings, which are copied, without showing a part of one.
/// Errors: BCQ_BAD_ARGUMENT (null, a negative number, an empty string), BCQ_OUT_OF_MEMORY.
bcq_status bcq_stop_create(const char* const* strings, const size_t* bytes, int32_t num,
                           bcq_stop** stop);
/// Null is allowed.
void bcq_stop_destroy(bcq_stop* stop);
/// Takes a piece of the text, as bcq_stream_push gives it, and tells what of the text can be shown
/// now: all but an end that may be the start of a stop string. *text is valid until the next call
/// and is no place to push from. *is_found: a stop string is there; no text comes any more.
/// Errors: BCQ_BAD_ARGUMENT (null), BCQ_OUT_OF_MEMORY (the piece was not taken).
bcq_status bcq_stop_push(bcq_stop* stop, const char* piece, size_t piece_bytes, const char** text,
                         size_t* text_bytes, int32_t* is_found);
/// What is held back when the text ends; valid until the next call.
bcq_status bcq_stop_end(bcq_stop* stop, const char** text, size_t* text_bytes);

// ---- conversations ----

typedef enum bcq_role { BCQ_SYSTEM = 0, BCQ_USER = 1, BCQ_ASSISTANT = 2 } bcq_role;

typedef struct bcq_message {
  int32_t role;  ///< bcq_role
  const char* content;
  size_t content_bytes;
} bcq_message;

/// The prompt of a conversation that ends where the assistant is to answer. `frames` is a section
/// of kind 66, whose JSON is not trusted. *needed is always told, the bytes of the prompt; they are
/// written to `out` only where `capacity` holds them all: call with capacity 0 to ask. The prompt
/// has its own begin token: encode it with flags = 2. Contents are copied as they are, so a special
/// token that a user spells becomes one; whoever minds encodes the contents apart.
/// Errors: BCQ_BAD_ARGUMENT (null, no message, no such role), BCQ_BAD_BLOB (frames that are
/// damaged), BCQ_UNSUPPORTED (a key of the future; a system message that is not the first, or that
/// these frames have no place for), BCQ_BAD_SHAPE (a prompt above SIZE_MAX).
bcq_status bcq_chat_render(const void* frames, size_t frames_bytes, const bcq_message* messages,
                           int32_t num, char* out, size_t capacity, size_t* needed);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // BCQ_RUNTIME_H_
