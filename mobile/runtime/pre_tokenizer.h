/// Cuts text into words before byte-level BPE, as the regular expressions of published tokenizers
/// do, without an engine for them.
#ifndef BCQ_RUNTIME_PRE_TOKENIZER_H_
#define BCQ_RUNTIME_PRE_TOKENIZER_H_

#include <stddef.h>
#include <stdint.h>

namespace bcq {

/// The numbers of docs/formats/bcq_package_v1.md.
enum class SplitRule : uint32_t {
  kNone = 0,
  kGpt2 = 1,
  kNumbersThenGpt2 = 2,  ///< every \p{N} is a word by itself, then gpt-2 between them
  kLlama3 = 3,
  kQwen2 = 4,
  kDigitsThenGpt2 = 5,  ///< the same with the Digits step, which knows a newer Unicode
};

/// The words of a valid UTF-8 text, one after the other; together they are the whole text.
class WordSplitter {
 public:
  /// `text` outlives the splitter.
  WordSplitter(SplitRule rule, const uint8_t* text, size_t bytes)
      : rule_(rule), text_(text), bytes_(bytes) {}

  /// Where the word ends that begins at byte `begin` < `bytes`; words are asked for in order.
  size_t end_of_word(size_t begin);

 private:
  SplitRule rule_;
  const uint8_t* text_;
  size_t bytes_;
  size_t part_end_ = 0;  ///< of the stretch between two single numbers
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_PRE_TOKENIZER_H_
