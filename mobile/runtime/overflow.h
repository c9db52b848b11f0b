/// What an append does with tokens for which there is no room.
#ifndef BCQ_RUNTIME_OVERFLOW_H_
#define BCQ_RUNTIME_OVERFLOW_H_

#include "runtime/session.h"

namespace bcq {

/// Makes room for *num checked ids, as the session's policy says: STOP lowers *num to what fits;
/// SLIDE truncates to session->keep tokens and lets *ids, *num be what is to be appended then, at
/// the end of session->ids. Errors: BCQ_BAD_SHAPE, and the session holds what it held.
bcq_status make_room(bcq_session* session, const int32_t** ids, int64_t* num);

}  // namespace bcq
#endif  // BCQ_RUNTIME_OVERFLOW_H_
