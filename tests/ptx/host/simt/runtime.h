// How the bindings of csrc/torch tell the interpreter of PTX what kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

enum class Access : int64_t { kRead, kReadWrite, kWrite };

// Memory that kernels may touch while this lives.
class Memory {
 public:
  Memory(const void* pointer, size_t bytes, Access access, const char* name);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

 private:
  int64_t number_;
};

}  // namespace simt
