#include "runtime/overflow.h"

#include "runtime/error.h"

namespace {

using bcq::fail;

/// Leaves the first `keep` tokens, and behind them in s->ids those to compute anew and *num new
/// ones.
bcq_status slide(bcq_session* s, const int32_t** ids, int64_t* num) {
  const int64_t context = s->sizes.context, behind = s->position - s->keep;
  if (*num > context - s->keep)
    return fail(BCQ_BAD_SHAPE, "%lld tokens and the first %lld do not fit into a context of %lld.",
                (long long)*num, (long long)s->keep, (long long)context);
  const int64_t room = context - s->keep - *num;  // for what is computed anew
  const int64_t half = behind - (behind + 1) / 2;
  const int64_t left = half < room ? half : room;
  int32_t* const first = s->ids + s->keep;
  memmove(first, s->ids + (s->position - left), (size_t)left * sizeof(int32_t));
  memcpy(first + left, *ids, (size_t)*num * sizeof(int32_t));
  bcq::clear_positions(s, s->keep, s->position);
  s->position = s->keep;
  *ids = first;
  *num += left;
  return BCQ_OK;
}

}  // namespace

namespace bcq {

bcq_status make_room(bcq_session* s, const int32_t** ids, int64_t* num) {
  const int64_t room = s->sizes.context - s->position;
  if (*num <= room) return BCQ_OK;
  if (s->overflow == BCQ_OVERFLOW_SLIDE) return slide(s, ids, num);
  if (s->overflow == BCQ_OVERFLOW_ERROR || room == 0) return check_room(*s, *num);
  *num = room;
  return BCQ_OK;
}

}  // namespace bcq

extern "C" bcq_status bcq_session_set_overflow(bcq_session* session, int32_t overflow,
                                               int64_t keep) {
  if (session == nullptr) return fail(BCQ_BAD_ARGUMENT, "session is null.");
  if (overflow < BCQ_OVERFLOW_ERROR || overflow > BCQ_OVERFLOW_SLIDE)
    return fail(BCQ_BAD_ARGUMENT, "There is no overflow policy %d.", (int)overflow);
  const int64_t most = overflow == BCQ_OVERFLOW_SLIDE ? session->sizes.context - 1 : 0;
  if (keep < 0 || keep > most)
    return fail(BCQ_BAD_ARGUMENT, "keep is %lld; it must be 0 .. %lld here.", (long long)keep,
                (long long)most);
  session->overflow = (bcq_overflow)overflow;
  session->keep = keep;
  return BCQ_OK;
}
