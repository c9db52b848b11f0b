/// Merging neighbours until nothing merges: the loop that both kinds of BPE share.
#ifndef BCQ_RUNTIME_MERGING_H_
#define BCQ_RUNTIME_MERGING_H_

#include <stddef.h>
#include <stdint.h>

#include <algorithm>

#include "runtime/memory.h"

namespace bcq {

/// A stretch of text on its way to become a token. Symbols are a list in an array: a merge leaves
/// the left one in place and takes the right one, then of 0 bytes, out.
struct Symbol {
  uint32_t begin, bytes;   ///< in the text
  int32_t id;              ///< -1: no token yet
  int32_t previous, next;  ///< -1: none
  bool is_whole;           ///< never merged
};

/// Two neighbours that form a token; the smallest `order` is merged first, then the leftmost.
struct Candidate {
  uint32_t order;
  int32_t left;
  int32_t id;  ///< of the token
};

/// What an encoding needs and the next stretch can use again.
struct MergeSpace {
  Buffer<Symbol> symbols;
  Buffer<Candidate> heap;

  /// One more symbol at the end of the list.
  bool push(uint32_t begin, uint32_t bytes, int32_t id, bool is_whole) {
    const int32_t at = static_cast<int32_t>(symbols.size());
    if (at > 0) symbols[symbols.size() - 1].next = at;
    return symbols.push({begin, bytes, id, at - 1, -1, is_whole});
  }
};

/// For std::push_heap, which keeps the largest in front.
inline bool is_later(const Candidate& a, const Candidate& b) {
  return a.order != b.order ? a.order > b.order : a.left > b.left;
}

/// Merges all symbols of `space` in place; those with bytes are what is left. `rule` has
/// `bool join(const Symbol& left, const Symbol& right, uint32_t* order, int32_t* id)`, which says
/// whether two neighbours form a token, and `bool is_current(left, right, id)`: whether what is
/// there now is what the candidate was made of. O(n log n). False: no memory.
template <class Rule>
bool merge_all(const Rule& rule, MergeSpace* space) {
  Symbol* const symbols = space->symbols.data();
  Buffer<Candidate>& heap = space->heap;
  heap.clear();
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbols[left].is_whole || symbols[right].is_whole) return true;
    Candidate found = {0, left, -1};
    if (!rule.join(symbols[left], symbols[right], &found.order, &found.id)) return true;
    if (!heap.push(found)) return false;
    std::push_heap(heap.begin(), heap.end(), is_later);
    return true;
  };
  for (size_t i = 1; i < space->symbols.size(); ++i) {
    if (!offer(static_cast<int32_t>(i - 1), static_cast<int32_t>(i))) return false;
  }
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), is_later);
    const Candidate best = heap[heap.size() - 1];
    heap.pop();
    Symbol& left = symbols[best.left];
    if (left.bytes == 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    if (left.is_whole || right.is_whole || !rule.is_current(left, right, best.id)) continue;
    left.bytes += right.bytes;
    left.id = best.id;
    right.bytes = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    if (!offer(left.previous, best.left) || !offer(best.left, left.next)) return false;
  }
  return true;
}

}  // namespace bcq
#endif  // BCQ_RUNTIME_MERGING_H_
