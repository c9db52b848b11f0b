/// Memory of the runtime: every byte that it holds comes from here, zeroed, aligned and counted.
///
/// No failure ends the process: a null pointer or false says that the system gave no memory.
#ifndef BCQ_RUNTIME_MEMORY_H_
#define BCQ_RUNTIME_MEMORY_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <new>

namespace bcq {

/// Every allocation starts on a multiple of this: a cache line, and what the kernels like best.
constexpr size_t kMemoryAlign = 64;
/// What an allocation takes besides the bytes asked for.
constexpr size_t kMemoryOverhead = kMemoryAlign + 2 * sizeof(size_t);

/// `bytes` zeroed bytes on a multiple of kMemoryAlign, or null. Large ones cost no page before they
/// are written to. `release` frees them. 0 bytes give a valid pointer.
void* allocate(size_t bytes);
/// Frees what `allocate` gave; null is allowed.
void release(void* memory);
/// Bytes that all allocations of the process hold now, their overhead included.
uint64_t memory_in_use();

/// `count` * `size` in *bytes; false if that does not fit.
inline bool multiply(size_t count, size_t size, size_t* bytes) {
  return !__builtin_mul_overflow(count, size, bytes);
}
/// `a` + `b` in *sum; false if that does not fit.
inline bool add(size_t a, size_t b, size_t* sum) { return !__builtin_add_overflow(a, b, sum); }

/// A T made by its default constructor over zeroed memory, or null. `destroy` ends it.
template <class T>
T* create() {
  static_assert(alignof(T) <= kMemoryAlign, "allocate() aligns no further");
  void* memory = allocate(sizeof(T));
  return memory != nullptr ? new (memory) T() : nullptr;
}
/// Runs the destructor and frees; null is allowed.
template <class T>
void destroy(T* object) {
  if (object == nullptr) return;
  object->~T();
  release(object);
}

/// An array that grows, of a type that may be copied byte by byte. It owns its memory; moving it
/// leaves an empty one behind. A function that needs memory returns false where there is none, and
/// the array is then as it was.
template <class T>
class Buffer {
 public:
  static_assert(__is_trivially_copyable(T), "values are moved as bytes");
  Buffer() = default;
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) release(give_away());
    swap(other);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  /// Room for `capacity` values without another allocation.
  bool reserve(size_t capacity) {
    if (capacity <= capacity_) return true;
    size_t bytes;
    if (!multiply(capacity, sizeof(T), &bytes)) return false;
    void* memory = allocate(bytes);
    if (memory == nullptr) return false;
    if (size_ != 0) memcpy(memory, static_cast<const void*>(data_), size_ * sizeof(T));
    release(data_);
    data_ = static_cast<T*>(memory);
    capacity_ = capacity;
    return true;
  }
  /// Exactly `size` values; new ones are zero bytes.
  bool resize(size_t size) {
    if (!reserve(size)) return false;
    if (size > size_) memset(static_cast<void*>(data_ + size_), 0, (size - size_) * sizeof(T));
    size_ = size;
    return true;
  }
  /// One value more at the end; `value` may lie in this array.
  bool push(const T& value) {
    const T copy = value;
    if (!grow(1)) return false;
    data_[size_++] = copy;
    return true;
  }
  /// `num` values more at the end; `values` do not lie in this array.
  bool append(const T* values, size_t num) {
    if (num == 0) return true;
    if (!grow(num)) return false;
    memcpy(static_cast<void*>(data_ + size_), values, num * sizeof(T));
    size_ += num;
    return true;
  }
  /// Forgets the last value; there must be one.
  void pop() { --size_; }
  /// Forgets all values and keeps the memory.
  void clear() { size_ = 0; }
  /// Leaves the memory to the caller, who calls release(); the array is empty then.
  T* give_away() {
    T* const data = data_;
    data_ = nullptr, size_ = 0, capacity_ = 0;
    return data;
  }
  void swap(Buffer& other) {
    T* const data = data_;
    const size_t size = size_, capacity = capacity_;
    data_ = other.data_, size_ = other.size_, capacity_ = other.capacity_;
    other.data_ = data, other.size_ = size, other.capacity_ = capacity;
  }

 private:
  /// Room for `more` values; at least doubles, so that a push costs O(1) on average.
  bool grow(size_t more) {
    size_t needed;
    if (!add(size_, more, &needed)) return false;
    if (needed <= capacity_) return true;
    size_t doubled = 16;
    if (capacity_ >= 16 && !multiply(capacity_, 2, &doubled)) doubled = needed;
    return reserve(needed > doubled ? needed : doubled);
  }

  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace bcq
#endif  // BCQ_RUNTIME_MEMORY_H_
