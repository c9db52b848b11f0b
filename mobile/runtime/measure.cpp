#include <math.h>

#include "runtime/error.h"
#include "runtime/session.h"

namespace {

using bcq::fail;

/// State of a score.
struct Score {
  const int32_t* ids;
  int64_t num;
  double nll;
};

/// -log p of `id`; NaN where the logits hold one.
double negative_log_likelihood(const float* logits, int64_t vocab_size, int32_t id) {
  float most = logits[0];
  for (int64_t i = 1; i < vocab_size; i++)
    if (logits[i] > most) most = logits[i];
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; i++) sum += exp((double)logits[i] - (double)most);
  return log(sum) + (double)most - (double)logits[id];
}

/// ChunkFn: every token of the chunk foretells the next one, whose chunk may not be there yet.
bcq_status add_chunk(bcq_session* s, int64_t first, int64_t chunk, void* state) {
  Score* const score = (Score*)state;
  for (int64_t row = 0; row < chunk && first + row + 1 < score->num; row++) {
    const bcq_status status = bcq::compute_logits(s, row);
    if (status != BCQ_OK) return status;
    score->nll +=
        negative_log_likelihood(s->logits, s->model->info.vocab_size, score->ids[first + row + 1]);
  }
  return BCQ_OK;
}

}  // namespace

extern "C" bcq_status bcq_session_score(bcq_session* session, const int32_t* ids, int64_t num,
                                        double* nll) {
  if (session == nullptr || nll == nullptr)
    return fail(BCQ_BAD_ARGUMENT, "session or nll is null.");
  *nll = 0;
  if (num < 2) return fail(BCQ_BAD_ARGUMENT, "%lld tokens; a score needs 2.", (long long)num);
  bcq_status status = bcq::check_ids(*session, ids, num);
  if (status == BCQ_OK) status = bcq::check_room(*session, num);
  Score score = {ids, num, 0};
  if (status == BCQ_OK) status = bcq::append_chunks(session, ids, num, add_chunk, &score);
  if (status == BCQ_OK) *nll = score.nll;
  return status;
}
