/// The merges of a tokenizer.json, the earliest first.
#ifndef BCQ_RUNTIME_RANK_MERGES_H_
#define BCQ_RUNTIME_RANK_MERGES_H_

#include "runtime/tokenizer.h"

namespace bcq {

/// Fills `merges` and `merged` of a tokenizer whose section, `words` and `cut` are ready; what a
/// merge makes becomes a word even if it is also cut out of texts. Of two merges of the same tokens
/// the later one counts. Errors: BCQ_BAD_BLOB (a merge of tokens that are not there or that makes
/// none), BCQ_OUT_OF_MEMORY.
bcq_status prepare_rank_merges(bcq_tokenizer* tokenizer);

/// For merge_all, over symbols that all have ids.
struct MergeByRank {
  const bcq_tokenizer* tokenizer;

  bool join(const Symbol& left, const Symbol& right, uint32_t* order, int32_t* id) const;
  /// As `tokenizers` has it: another merge that makes the same token is as good.
  bool is_current(const Symbol& left, const Symbol& right, int32_t id) const;
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_RANK_MERGES_H_
