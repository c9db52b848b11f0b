#include "runtime/rank_merges.h"

#include "runtime/error.h"

namespace bcq {
namespace {

size_t first_slot(uint32_t left, uint32_t right, size_t mask) {
  return static_cast<size_t>(mix(uint64_t{left} << 32 | right)) & mask;
}

/// The slot of a merge, or the free one where it would go.
size_t find_slot(const bcq_tokenizer& tokenizer, uint32_t left, uint32_t right) {
  const size_t mask = tokenizer.merges.size() - 1;
  size_t at = first_slot(left, right, mask);
  for (; tokenizer.merges[at] != 0; at = (at + 1) & mask) {
    uint32_t other_left, other_right;
    tokenizer.section.merge(tokenizer.merges[at] - 1, &other_left, &other_right);
    if (other_left == left && other_right == right) break;
  }
  return at;
}

/// The token that a merge makes: a normal one, else one that is also cut out of texts, which is
/// then a word too.
bcq_status add_merge(bcq_tokenizer* tokenizer, uint32_t index, Buffer<uint8_t>* joined) {
  const TokenSection& section = tokenizer->section;
  uint32_t left, right;
  section.merge(index, &left, &right);
  if (left >= section.num_tokens || right >= section.num_tokens) {
    return fail(BCQ_BAD_BLOB, "merge %u is of tokens %u and %u of %u", index, left, right,
                section.num_tokens);
  }
  const Text a = section.text(left), b = section.text(right);
  joined->clear();
  if (!joined->append(a.data, a.bytes) || !joined->append(b.data, b.bytes)) {
    return fail(BCQ_OUT_OF_MEMORY, "no memory for the tokenizer");
  }
  const Text text = {joined->data(), joined->size()};
  int32_t id = tokenizer->words.find(text);
  if (id < 0) {
    id = tokenizer->cut.find(text);
    if (id < 0 || a.bytes == 0 || b.bytes == 0) {
      return fail(BCQ_BAD_BLOB, "merge %u makes no token", index);
    }
    tokenizer->words.add(static_cast<uint32_t>(id));
  }
  tokenizer->merged[index] = id;
  tokenizer->merges[find_slot(*tokenizer, left, right)] = index + 1;
  return BCQ_OK;
}

}  // namespace

bool MergeByRank::join(const Symbol& left, const Symbol& right, uint32_t* order,
                       int32_t* id) const {
  const size_t slot =
      find_slot(*tokenizer, static_cast<uint32_t>(left.id), static_cast<uint32_t>(right.id));
  const uint32_t index_plus_1 = tokenizer->merges[slot];
  if (index_plus_1 == 0) return false;
  *order = index_plus_1;
  *id = tokenizer->merged[index_plus_1 - 1];
  return true;
}

bool MergeByRank::is_current(const Symbol& left, const Symbol& right, int32_t id) const {
  uint32_t order;
  int32_t now;
  return join(left, right, &order, &now) && now == id;
}

bcq_status prepare_rank_merges(bcq_tokenizer* tokenizer) {
  const uint32_t num_merges = tokenizer->section.num_merges;
  size_t slots = 16;
  while (slots < size_t{2} * num_merges) slots *= 2;
  Buffer<uint8_t> joined;
  if (!tokenizer->merges.resize(slots) || !tokenizer->merged.resize(num_merges)) {
    return fail(BCQ_OUT_OF_MEMORY, "no memory for the tokenizer");
  }
  for (uint32_t index = 0; index < num_merges; ++index) {
    const bcq_status status = add_merge(tokenizer, index, &joined);
    if (status != BCQ_OK) return status;
  }
  return BCQ_OK;
}

}  // namespace bcq
