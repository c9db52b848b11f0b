#include "runtime/session.h"

#include "runtime/error.h"
#include "runtime/overflow.h"

namespace {

using bcq::fail;

constexpr int64_t kBlockPositions = 16;  // that share the key cache's lines

/// The right to use the model's pool; nothing to wait for where there is none.
class Turn {
 public:
  explicit Turn(bcq_model* model) : model_(model->context.pool != nullptr ? model : nullptr) {
    if (model_ != nullptr) model_->turn.enter();
  }
  ~Turn() {
    if (model_ != nullptr) model_->turn.leave();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  bcq_model* model_;
};

int64_t value_bytes(int32_t kv_type) {
  return kv_type == BCQ_KV_F32 ? 4 : kv_type == BCQ_KV_F16 ? 2 : 1;
}

/// Zeros into whole blocks of 16 positions, [first, last).
void clear_blocks(const bcq_kv& kv, int64_t first, int64_t last) {
  const int64_t row = kv.head_dim * value_bytes(kv.type);
  const size_t bytes = (size_t)((last - first) * row), scales = (size_t)(last - first) * 4;
  for (int64_t h = 0; h < kv.num_kv_heads; h++) {
    const int64_t at = h * kv.capacity + first;
    memset((uint8_t*)kv.keys + at * row, 0, bytes);
    memset((uint8_t*)kv.values + at * row, 0, bytes);
    if (kv.key_scales == nullptr) continue;
    memset(kv.key_scales + at, 0, scales);
    memset(kv.value_scales + at, 0, scales);
  }
}

bool takes_cancel(bcq_session* s) {
  return __atomic_exchange_n(&s->is_cancelled, 0, __ATOMIC_ACQ_REL) != 0;
}

/// One layer over `num` tokens at s->position; the pool is held meanwhile.
bcq_status run_layer(bcq_session* s, int64_t layer, int64_t num) {
  const Turn turn(s->model);
  const bcq_status status = bcq_decoder_block(
      &s->model->context, &s->decoder, &s->model->blocks[layer], &s->caches[layer], s->x, num,
      s->position, s->decoder_scratch, s->sizes.decoder_bytes);
  return status == BCQ_OK ? status
                          : fail(status, "Layer %lld of %lld: %s", (long long)layer,
                                 (long long)s->model->info.num_layers, bcq_status_text(status));
}

/// Rows of the embedding into the residual stream.
bcq_status run_embedding(bcq_session* s, const int32_t* ids, int64_t num) {
  const Turn turn(s->model);
  const bcq_status status = bcq_embed(&s->model->context, &s->model->weights[0], ids, num, s->x,
                                      s->model->info.hidden_size);
  return status == BCQ_OK ? status : fail(status, "The embedding: %s", bcq_status_text(status));
}

/// All layers over `num` tokens at s->position.
bcq_status run_layers(bcq_session* s, const int32_t* ids, int64_t num) {
  bcq_status status = run_embedding(s, ids, num);
  for (int64_t layer = 0; layer < s->model->info.num_layers && status == BCQ_OK; layer++) {
    status = run_layer(s, layer, num);
    if (status == BCQ_OK && takes_cancel(s)) return fail(BCQ_CANCELLED, "The call was cancelled.");
  }
  return status;
}

/// The memory of a session, whose sizes are known.
bcq_status allocate_session(bcq_session* s) {
  const bcq_model_info& info = s->model->info;
  s->scratch = (uint8_t*)bcq::allocate(s->sizes.scratch_bytes);
  s->cache_memory = (uint8_t*)bcq::allocate(s->sizes.caches_bytes);
  if (s->scratch == nullptr || s->cache_memory == nullptr)
    return fail(BCQ_OUT_OF_MEMORY, "No memory for a context of %lld tokens.",
                (long long)s->sizes.context);
  s->x = (float*)(s->scratch + s->sizes.x_at);
  s->logits = (float*)(s->scratch + s->sizes.logits_at);
  s->zeros = (float*)(s->scratch + s->sizes.zeros_at);
  s->caches = (bcq_kv*)(s->scratch + s->sizes.caches_at);
  s->ids = (int32_t*)(s->scratch + s->sizes.ids_at);
  s->decoder_scratch = s->scratch + s->sizes.decoder_at;
  for (int64_t layer = 0; layer < info.num_layers; layer++) {
    const bcq_status status =
        bcq_kv_init(s->model->settings.kv_type, info.num_kv_heads, info.head_dim, s->sizes.capacity,
                    s->cache_memory + (size_t)layer * s->sizes.layer_bytes, s->sizes.layer_bytes,
                    &s->caches[layer]);
    if (status != BCQ_OK) return fail(status, "A cache: %s", bcq_status_text(status));
  }
  return BCQ_OK;
}

uint64_t bytes_of(const bcq_session& s) {
  return s.sizes.counted_scratch() + s.sizes.counted_caches();
}

/// Enters the session into the model's books: its bytes within the budget, and rotary tables.
bcq_status enter_books(bcq_session* s) {
  bcq_model* const model = s->model;
  const bcq::Locked locked(&model->books);
  const uint64_t more = bytes_of(*s) + bcq::missing_rope_bytes(*model, s->sizes.context);
  const uint64_t budget = model->settings.budget_bytes;
  if (more > budget || model->bytes_in_use > budget - more)
    return fail(BCQ_OUT_OF_MEMORY, "The session needs %llu bytes beside %llu; the budget is %llu.",
                (unsigned long long)more, (unsigned long long)model->bytes_in_use,
                (unsigned long long)budget);
  const bcq_status status = bcq::take_rope(model, s->sizes.context, &s->rope);
  if (status != BCQ_OK) return status;
  model->bytes_in_use += bytes_of(*s);
  s->decoder = model->decoder;
  if (s->rope == nullptr) return BCQ_OK;
  s->decoder.rope_cos = s->rope->cos, s->decoder.rope_sin = s->rope->sin;
  s->decoder.num_positions = s->rope->num_positions;
  return BCQ_OK;
}

void leave_books(bcq_session* s) {
  const bcq::Locked locked(&s->model->books);
  s->model->bytes_in_use -= bytes_of(*s);
  bcq::give_rope(s->model, s->rope);
}

void free_session(bcq_session* s) {
  bcq::release(s->scratch);
  bcq::release(s->cache_memory);
  bcq::destroy(s);
}

/// ChunkFn of an append of *(int64_t*)num tokens: the logits of the last one.
bcq_status finish_append(bcq_session* s, int64_t first, int64_t chunk, void* num) {
  return first + chunk == *(const int64_t*)num ? bcq::compute_logits(s, chunk - 1) : BCQ_OK;
}

}  // namespace

namespace bcq {

bcq_status check_ids(const bcq_session& s, const int32_t* ids, int64_t num) {
  if (ids == nullptr || num < 1) return fail(BCQ_BAD_ARGUMENT, "ids are null or none.");
  for (int64_t i = 0; i < num; i++)
    if (ids[i] < 0 || ids[i] >= s.model->info.vocab_size)
      return fail(BCQ_BAD_ARGUMENT, "Id %d is not of the vocabulary of %lld.", (int)ids[i],
                  (long long)s.model->info.vocab_size);
  return BCQ_OK;
}

bcq_status check_room(const bcq_session& s, int64_t num) {
  if (num <= s.sizes.context - s.position) return BCQ_OK;
  return fail(BCQ_BAD_SHAPE, "%lld tokens after %lld do not fit into a context of %lld.",
              (long long)num, (long long)s.position, (long long)s.sizes.context);
}

bcq_status append_chunks(bcq_session* s, const int32_t* ids, int64_t num, ChunkFn done,
                         void* state) {
  const int64_t before = s->position;
  memmove(s->ids + before, ids, (size_t)num * sizeof(int32_t));
  for (int64_t first = 0; first < num;) {
    const int64_t left = num - first;
    const int64_t chunk = left < s->sizes.prefill_tokens ? left : s->sizes.prefill_tokens;
    bcq_status status = run_layers(s, s->ids + s->position, chunk);
    if (status == BCQ_OK) status = done(s, first, chunk, state);
    if (status != BCQ_OK) {
      clear_positions(s, before, s->position + chunk);
      s->position = before;
      return status;
    }
    first += chunk;
    s->position += chunk;
  }
  return BCQ_OK;
}

bcq_status compute_logits(bcq_session* s, int64_t row) {
  const bcq_model& model = *s->model;
  const Turn turn(s->model);
  const bcq_status status =
      bcq_decoder_head(&model.context, &s->decoder, model.last_norm, &model.weights[1],
                       s->x + row * model.info.hidden_size, 1, s->logits, s->decoder_scratch,
                       s->sizes.decoder_bytes);
  return status == BCQ_OK ? status : fail(status, "The head: %s", bcq_status_text(status));
}

void clear_positions(bcq_session* s, int64_t first, int64_t last) {
  const bcq_context alone = {s->model->context.kernels, nullptr};
  const int64_t width = s->model->info.num_kv_heads * s->model->info.head_dim;
  const auto block_up = [](int64_t at) {
    return (at + kBlockPositions - 1) / kBlockPositions * kBlockPositions;
  };
  const int64_t whole = block_up(first) < last ? block_up(first) : last;
  for (int64_t layer = 0; layer < s->model->info.num_layers; layer++) {
    const bcq_kv& kv = s->caches[layer];
    for (int64_t at = first; at < whole; at++)
      bcq_kv_append(&alone, &kv, at, 1, s->zeros, width, s->zeros, width);
    if (whole < last) clear_blocks(kv, whole, block_up(last));
  }
}

}  // namespace bcq

extern "C" {

bcq_status bcq_session_create(bcq_model* model, int64_t context, bcq_session** session) {
  if (session == nullptr) return fail(BCQ_BAD_ARGUMENT, "session is null.");
  *session = nullptr;
  if (model == nullptr) return fail(BCQ_BAD_ARGUMENT, "model is null.");
  bcq_session* const made = bcq::create<bcq_session>();
  if (made == nullptr) return fail(BCQ_OUT_OF_MEMORY, "No memory for a session.");
  made->model = model;
  bcq_status status = bcq::session_sizes(model->info, model->settings, context, &made->sizes);
  if (status == BCQ_OK) status = enter_books(made);
  if (status != BCQ_OK) {
    free_session(made);
    return status;
  }
  status = allocate_session(made);
  if (status == BCQ_OK)
    *session = made;
  else
    bcq_session_destroy(made);
  return status;
}

void bcq_session_destroy(bcq_session* session) {
  if (session == nullptr) return;
  leave_books(session);
  free_session(session);
}

int64_t bcq_session_position(const bcq_session* session) {
  return session != nullptr ? session->position : 0;
}

const int32_t* bcq_session_ids(const bcq_session* session) {
  return session != nullptr ? session->ids : nullptr;
}

bcq_status bcq_session_match(const bcq_session* session, const int32_t* ids, int64_t num,
                             int64_t* common) {
  if (session == nullptr || ids == nullptr || common == nullptr || num < 0)
    return fail(BCQ_BAD_ARGUMENT, "session, ids or common is null, or num is negative.");
  const int64_t most = num < session->position ? num : session->position;
  for (*common = 0; *common < most && ids[*common] == session->ids[*common];) ++*common;
  return BCQ_OK;
}

bcq_status bcq_session_truncate(bcq_session* session, int64_t position) {
  if (session == nullptr) return fail(BCQ_BAD_ARGUMENT, "session is null.");
  if (position < 0 || position > session->position)
    return fail(BCQ_BAD_ARGUMENT, "Truncate to %lld: %lld tokens are held.", (long long)position,
                (long long)session->position);
  bcq::clear_positions(session, position, session->position);
  session->position = position;
  return BCQ_OK;
}

bcq_status bcq_session_append(bcq_session* session, const int32_t* ids, int64_t num,
                              const float** logits) {
  if (session == nullptr || logits == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "session or logits is null.");
  *logits = nullptr;
  bcq_status status = bcq::check_ids(*session, ids, num);
  if (status == BCQ_OK) status = bcq::make_room(session, &ids, &num);
  if (status == BCQ_OK) status = bcq::append_chunks(session, ids, num, finish_append, &num);
  if (status == BCQ_OK) *logits = session->logits;
  return status;
}

void bcq_session_cancel(bcq_session* session) {
  if (session != nullptr) __atomic_store_n(&session->is_cancelled, 1, __ATOMIC_RELEASE);
}

}  // extern "C"
