#include "runtime/model.h"

#include <math.h>

#include "runtime/cores.h"
#include "runtime/error.h"

namespace {

using bcq::fail;
using bcq::RopeTables;

/// As bcquant/models/rope_tables.py: float32 angles, whose cosines are rounded to float32 once.
void fill_rope(const float* frequencies, int64_t half, RopeTables* rope) {
  for (int64_t p = 0; p < rope->num_positions; p++)
    for (int64_t i = 0; i < half; i++) {
      const float angle = (float)p * frequencies[i];
      rope->cos[p * half + i] = (float)cos((double)angle);
      rope->sin[p * half + i] = (float)sin((double)angle);
    }
}

void fill_block(const bcq_model& model, int64_t layer, bcq_block* block) {
  const uint16_t at = (uint16_t)layer;
  const auto vector = [&model, at](int32_t kind) {
    return bcq::section_array<float>(*model.package, kind, at);
  };
  bcq_dense* const linears[bcq::kNumLinears] = {&block->q,    &block->k,  &block->v,   &block->o,
                                                &block->gate, &block->up, &block->down};
  for (int32_t i = 0; i < bcq::kNumLinears; i++)
    *linears[i] = {&model.weights[bcq::linear_at(layer, i)], vector(bcq::kFirstBias + i)};
  block->attention_norm = vector(bcq::kAttentionNorm);
  block->mlp_norm = vector(bcq::kMlpNorm);
  block->q_norm = vector(bcq::kQNorm);
  block->k_norm = vector(bcq::kKNorm);
  const uint32_t* const windows =
      bcq::section_array<uint32_t>(*model.package, bcq::kWindows, bcq::kNoLayer);
  block->window = windows != nullptr ? windows[layer] : 0;
}

/// Who computes. A pool serves one caller at a time, so sessions take turns on it.
bcq_status choose_kernels(const bcq_options& options, bcq_model* model) {
  bcq_status status = bcq_kernels_get(options.tier, &model->context.kernels);
  if (status != BCQ_OK)
    return fail(status, "Kernel tier %s: %s",
                options.tier != nullptr ? options.tier : "of this CPU", bcq_status_text(status));
  int32_t threads = model->settings.num_threads;
  if (threads == 0) threads = bcq::num_big_cores();
  status = bcq_pool_create(threads, &model->context.pool);
  return status == BCQ_OK
             ? status
             : fail(status, "A pool of %d threads: %s", (int)threads, bcq_status_text(status));
}

bcq_status allocate_arrays(bcq_model* model) {
  size_t weights, blocks;
  const bool fits = bcq::multiply(bcq::num_weights(model->info), sizeof(bcq_weight), &weights) &&
                    bcq::multiply((size_t)model->info.num_layers, sizeof(bcq_block), &blocks);
  if (fits) {
    model->weights = (bcq_weight*)bcq::allocate(weights);
    model->blocks = (bcq_block*)bcq::allocate(blocks);
  }
  return model->weights != nullptr && model->blocks != nullptr
             ? BCQ_OK
             : fail(BCQ_OUT_OF_MEMORY, "No memory for the tables of a model.");
}

bcq_status fill_model(const bcq_package& package, const bcq_options* options, bcq_model* model) {
  model->package = &package;
  model->info = package.info;
  bcq_status status = bcq::read_options(package, options, &model->settings);
  if (status == BCQ_OK) status = allocate_arrays(model);
  if (status == BCQ_OK)
    status = bcq::open_weights(package, model->settings.precision, model->weights);
  if (status != BCQ_OK) return status;
  model->decoder = bcq::decoder_of(model->info, model->settings);
  if (model->info.is_alibi)
    model->decoder.alibi = bcq::section_array<float>(package, bcq::kPositions, bcq::kNoLayer);
  model->last_norm = bcq::section_array<float>(package, bcq::kLastNorm, bcq::kNoLayer);
  for (int64_t layer = 0; layer < model->info.num_layers; layer++)
    fill_block(*model, layer, &model->blocks[layer]);
  model->bytes_in_use = bcq::mapped_bytes(package) + bcq::model_bytes(model->info);
  if (model->bytes_in_use > model->settings.budget_bytes)
    return fail(
        BCQ_OUT_OF_MEMORY, "The model needs %llu bytes without a session; the budget is %llu.",
        (unsigned long long)model->bytes_in_use, (unsigned long long)model->settings.budget_bytes);
  return choose_kernels(*options, model);
}

}  // namespace

bcq_model::~bcq_model() {
  bcq_pool_destroy(context.pool);
  bcq::release(weights);
  bcq::release(blocks);
  bcq::release(rope);
}

namespace bcq {

uint64_t missing_rope_bytes(const bcq_model& model, int64_t positions) {
  const bool is_there = model.rope != nullptr && model.rope->num_positions >= positions;
  return is_there || model.info.is_alibi ? 0 : counted(rope_bytes(model.info, positions));
}

bcq_status take_rope(bcq_model* model, int64_t positions, RopeTables** rope) {
  *rope = nullptr;
  const uint64_t bytes = missing_rope_bytes(*model, positions);
  if (bytes > 0) {
    RopeTables* const made = (RopeTables*)allocate((size_t)rope_bytes(model->info, positions));
    if (made == nullptr)
      return fail(BCQ_OUT_OF_MEMORY, "No memory for the angles of %lld positions.",
                  (long long)positions);
    const int64_t half = model->info.head_dim / 2;
    made->num_positions = positions;
    made->cos = (float*)(made + 1);
    made->sin = made->cos + positions * half;
    made->num_users = 1;
    fill_rope(section_array<float>(*model->package, kPositions, kNoLayer), half, made);
    give_rope(model, model->rope);
    model->rope = made;
    model->bytes_in_use += bytes;
  }
  *rope = model->rope;
  if (*rope != nullptr) (*rope)->num_users++;
  return BCQ_OK;
}

void give_rope(bcq_model* model, RopeTables* rope) {
  if (rope == nullptr || --rope->num_users > 0) return;
  model->bytes_in_use -= counted(rope_bytes(model->info, rope->num_positions));
  release(rope);
}

}  // namespace bcq

extern "C" {

bcq_status bcq_model_create(const bcq_package* package, const bcq_options* options,
                            bcq_model** model) {
  if (model == nullptr) return fail(BCQ_BAD_ARGUMENT, "model is null.");
  *model = nullptr;
  if (package == nullptr) return fail(BCQ_BAD_ARGUMENT, "package is null.");
  bcq_model* const made = bcq::create<bcq_model>();
  if (made == nullptr) return fail(BCQ_OUT_OF_MEMORY, "No memory for a model.");
  const bcq_status status = fill_model(*package, options, made);
  if (status == BCQ_OK)
    *model = made;
  else
    bcq::destroy(made);
  return status;
}

void bcq_model_destroy(bcq_model* model) { bcq::destroy(model); }

const char* bcq_model_tier(const bcq_model* model) {
  return model != nullptr ? model->context.kernels->tier : "";
}

}  // extern "C"
