#include "runtime/plan.h"

#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/session.h"

namespace {

using bcq::fail;
using bcq::Section;

constexpr int32_t kDefaultPrefill = 128;
constexpr int32_t kMaxPrefill = 512;
constexpr int64_t kMaxTokenColumns = 1 << 16;  // of W8A8: its sums are 32 bits wide
constexpr int64_t kPositionsPerBlock = 16;

uint64_t aligned(uint64_t bytes) {
  return (bytes + bcq::kMemoryAlign - 1) / bcq::kMemoryAlign * bcq::kMemoryAlign;
}

bcq_status open_weight(const bcq_package& package, int32_t kind, uint16_t layer, bcq::Shape shape,
                       bcq_precision precision, bcq_weight* weight) {
  const Section& section = *bcq::find_section(package.sections, kind, layer);
  const bcq_status status =
      bcq_weight_open(bcq::section_data(package, section), (size_t)section.bytes, weight);
  if (status != BCQ_OK)
    return fail(status == BCQ_UNSUPPORTED ? status : BCQ_BAD_BLOB, "%s: %s",
                bcq::name_of(section).text, bcq_status_text(status));
  if (weight->out_features != shape.out_features || weight->in_features != shape.in_features)
    return fail(BCQ_BAD_BLOB, "%s is [%lld, %lld]; the model needs [%lld, %lld].",
                bcq::name_of(section).text, (long long)weight->out_features,
                (long long)weight->in_features, (long long)shape.out_features,
                (long long)shape.in_features);
  const bool is_wide = weight->num_groups > 1 || weight->in_features > kMaxTokenColumns;
  if (precision == BCQ_INT8_TOKEN && weight->bits != 16 && is_wide)
    return fail(BCQ_UNSUPPORTED,
                "%s has groups or more than 65536 columns, so its inputs cannot be int8 with one "
                "scale a token; choose other activations.",
                bcq::name_of(section).text);
  return BCQ_OK;
}

/// Floats of one token in the kernels' scratch, and more; see bcq_decoder_scratch.
uint64_t floats_of_token(const bcq_model_info& info) {
  const uint64_t q = (uint64_t)(info.num_heads * info.head_dim);
  const uint64_t intermediate = (uint64_t)info.intermediate_size;
  return 8 * ((uint64_t)info.hidden_size + q + intermediate);
}

bcq_status too_large() {
  return fail(BCQ_OUT_OF_MEMORY, "The session needs more memory than this system can address.");
}

/// Lays out the scratch; false where it cannot be addressed.
bool lay_out(const bcq_model_info& info, const bcq::Settings& settings, bcq::SessionSizes* sizes) {
  const uint64_t tokens = (uint64_t)sizes->prefill_tokens;
  // The kernels compute their own share in size_t, so that must be known to fit.
  if (tokens * floats_of_token(info) * 4 > PTRDIFF_MAX / 2) return false;
  const bcq_decoder decoder = bcq::decoder_of(info, settings);
  if (bcq_decoder_scratch(&decoder, sizes->prefill_tokens, &sizes->decoder_bytes) != BCQ_OK)
    return false;
  uint64_t at = 0;
  const auto take = [&at](uint64_t bytes) {
    const uint64_t start = at;
    at += aligned(bytes);
    return (size_t)start;
  };
  sizes->x_at = take(tokens * (uint64_t)info.hidden_size * 4);
  sizes->logits_at = take((uint64_t)info.vocab_size * 4);
  sizes->zeros_at = take((uint64_t)(info.num_kv_heads * info.head_dim) * 4);
  sizes->caches_at = take((uint64_t)info.num_layers * sizeof(bcq_kv));
  sizes->ids_at = take((uint64_t)sizes->context * sizeof(int32_t));
  sizes->decoder_at = take(sizes->decoder_bytes);
  sizes->scratch_bytes = (size_t)at;
  return at <= PTRDIFF_MAX / 2;
}

bcq_status fill_plan(const bcq_package& package, const bcq::Settings& settings, int64_t context,
                     bcq_plan* plan) {
  bcq::SessionSizes sizes;
  const bcq_status status = bcq::session_sizes(package.info, settings, context, &sizes);
  if (status != BCQ_OK) return status;
  const uint64_t rope = bcq::rope_bytes(package.info, context);
  plan->weight_bytes = bcq::mapped_bytes(package);
  plan->table_bytes = bcq::model_bytes(package.info) + (rope > 0 ? bcq::counted(rope) : 0);
  plan->scratch_bytes = sizes.counted_scratch();
  plan->kv_bytes = sizes.counted_caches();
  plan->total_bytes = plan->weight_bytes + plan->table_bytes + plan->scratch_bytes + plan->kv_bytes;
  return BCQ_OK;
}

}  // namespace

namespace bcq {

bcq_status read_options(const bcq_package& package, const bcq_options* options,
                        Settings* settings) {
  if (options == nullptr) return fail(BCQ_BAD_ARGUMENT, "options are null.");
  const struct {
    const char* name;
    int32_t value, least, most;
  } ranges[] = {
      {"num_threads", options->num_threads, 0, 256},
      {"activations", options->activations, -1, BCQ_INT8_TOKEN},
      {"kv_type", options->kv_type, BCQ_KV_F32, BCQ_KV_INT8},
      {"prefill_tokens", options->prefill_tokens, 0, kMaxPrefill},
  };
  for (const auto& range : ranges)
    if (range.value < range.least || range.value > range.most)
      return fail(BCQ_BAD_ARGUMENT, "%s is %d; it must be %d .. %d.", range.name, (int)range.value,
                  (int)range.least, (int)range.most);
  settings->num_threads = options->num_threads;
  settings->precision =
      (bcq_precision)(options->activations < 0 ? package.info.activations : options->activations);
  settings->kv_type = (bcq_kv_type)options->kv_type;
  settings->prefill_tokens =
      options->prefill_tokens > 0 ? options->prefill_tokens : kDefaultPrefill;
  settings->budget_bytes = options->budget_bytes > 0 ? options->budget_bytes : UINT64_MAX;
  return BCQ_OK;
}

size_t num_weights(const bcq_model_info& info) { return linear_at(info.num_layers, 0); }

bcq_status open_weights(const bcq_package& package, bcq_precision precision, bcq_weight* weights) {
  const bcq_model_info& info = package.info;
  const Shape ends = {info.vocab_size, info.hidden_size};
  bcq_weight opened;
  for (size_t i = 0; i < num_weights(info); i++) {
    const bool is_linear = i >= 2;
    const int32_t linear = is_linear ? (int32_t)((i - 2) % kNumLinears) : 0;
    const uint16_t layer = is_linear ? (uint16_t)((i - 2) / kNumLinears) : kNoLayer;
    const int32_t end = i == 0 || info.ties_head ? kEmbedding : kHead;
    const bcq_status status =
        open_weight(package, is_linear ? kFirstLinear + linear : end, layer,
                    is_linear ? linear_shape(info, linear) : ends, precision, &opened);
    if (status != BCQ_OK) return status;
    if (weights != nullptr) weights[i] = opened;
  }
  return BCQ_OK;
}

bcq_decoder decoder_of(const bcq_model_info& info, const Settings& settings) {
  bcq_decoder decoder = {};
  decoder.hidden = info.hidden_size;
  decoder.intermediate = info.intermediate_size;
  decoder.num_heads = info.num_heads;
  decoder.num_kv_heads = info.num_kv_heads;
  decoder.head_dim = info.head_dim;
  decoder.eps = info.eps;
  decoder.precision = settings.precision;
  return decoder;
}

uint64_t mapped_bytes(const bcq_package& package) {
  uint64_t bytes = 0;  // no overflow: the sections lie in files of this system
  for (const Section& section : package.sections)
    if (section.kind < kFirstText) bytes += section.bytes;
  return bytes;
}

uint64_t model_bytes(const bcq_model_info& info) {
  return counted(sizeof(bcq_model)) + counted(num_weights(info) * sizeof(bcq_weight)) +
         counted((uint64_t)info.num_layers * sizeof(bcq_block));
}

uint64_t rope_bytes(const bcq_model_info& info, int64_t positions) {
  if (info.is_alibi) return 0;
  return sizeof(RopeTables) + (uint64_t)positions * (uint64_t)info.head_dim * 4;
}

uint64_t SessionSizes::counted_scratch() const {
  return counted(sizeof(bcq_session)) + counted(scratch_bytes);
}

bcq_status session_sizes(const bcq_model_info& info, const Settings& settings, int64_t context,
                         SessionSizes* sizes) {
  *sizes = {};
  if (context < 1) return fail(BCQ_BAD_ARGUMENT, "A context of %lld tokens.", (long long)context);
  if (context > info.max_positions)
    return fail(BCQ_BAD_SHAPE, "A context of %lld tokens; the model has %lld positions.",
                (long long)context, (long long)info.max_positions);
  sizes->context = context;
  sizes->capacity = (context + kPositionsPerBlock - 1) / kPositionsPerBlock * kPositionsPerBlock;
  sizes->prefill_tokens = settings.prefill_tokens < context ? settings.prefill_tokens : context;
  if (!lay_out(info, settings, sizes)) return too_large();
  if (bcq_kv_bytes(settings.kv_type, info.num_kv_heads, info.head_dim, sizes->capacity,
                   &sizes->layer_bytes) != BCQ_OK ||
      !multiply(sizes->layer_bytes, (size_t)info.num_layers, &sizes->caches_bytes) ||
      sizes->caches_bytes > PTRDIFF_MAX / 2 || rope_bytes(info, context) > PTRDIFF_MAX / 2)
    return too_large();
  return BCQ_OK;
}

}  // namespace bcq

extern "C" bcq_status bcq_plan_model(const bcq_package* package, const bcq_options* options,
                                     int64_t context, bcq_plan* plan) {
  if (package == nullptr || plan == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "package or plan is null.");
  *plan = {};
  bcq::Settings settings;
  bcq_status status = bcq::read_options(*package, options, &settings);
  if (status == BCQ_OK) status = bcq::open_weights(*package, settings.precision, nullptr);
  if (status == BCQ_OK) status = fill_plan(*package, settings, context, plan);
  if (status != BCQ_OK) return status;
  if (plan->total_bytes > settings.budget_bytes)
    return fail(BCQ_OUT_OF_MEMORY, "The model needs %llu bytes; the budget is %llu.",
                (unsigned long long)plan->total_bytes, (unsigned long long)settings.budget_bytes);
  return BCQ_OK;
}
