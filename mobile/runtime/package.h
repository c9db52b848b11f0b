/// An opened package: mapped shards, the model block and the rows of the index.
#ifndef BCQ_RUNTIME_PACKAGE_H_
#define BCQ_RUNTIME_PACKAGE_H_

#include "bcq/runtime.h"
#include "runtime/index.h"
#include "runtime/mapped_file.h"
#include "runtime/memory.h"

struct bcq_package {
  bcq_model_info info;
  bool owns_shards;    ///< mapped here; else the caller's memory
  bool is_checked;     ///< every section was found to have its digest, and the gaps to be clear
  uint64_t index_end;  ///< in shard 0: where sections may begin
  uint8_t digest[bcq::kDigestBytes];  ///< of the index: the package's name for itself
  bcq::Buffer<bcq::MappedFile> shards;
  bcq::Buffer<bcq::Section> sections;  ///< sorted by (kind, layer), each in its shard

  ~bcq_package();
};

namespace bcq {

/// Where a section's bytes are.
inline const uint8_t* section_data(const bcq_package& package, const Section& section) {
  return package.shards[section.shard].data + section.offset;
}

/// A section's bytes as an array of T (f32 or u32), null where there is none of (kind, layer).
/// Its length is what the model block asks for.
template <class T>
const T* section_array(const bcq_package& package, int32_t kind, uint16_t layer) {
  const Section* const section = find_section(package.sections, kind, layer);
  return section != nullptr ? (const T*)section_data(package, *section) : nullptr;
}

/// Name of shard `shard` of a package of `num_shards` whose first shard is the file `first`, with a
/// zero byte at its end. Errors: BCQ_BAD_ARGUMENT (`first` is not named as a first shard is),
/// BCQ_OUT_OF_MEMORY.
bcq_status shard_path(const char* first, uint32_t shard, uint32_t num_shards, Buffer<char>* path);

}  // namespace bcq
#endif  // BCQ_RUNTIME_PACKAGE_H_
