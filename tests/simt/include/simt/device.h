// What the spelling of CUDA (intrinsics.h, atomics.h, primitives.h) calls in the runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

#include "simt/types.h"

// For functions of these headers: what they load and store is the runtime's business, and is
// reported to it with the line of their caller.
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))
// Last parameter of an intrinsic: the line that calls it.
#define SIMT_SITE ::simt::Site site = ::simt::Site::here()

namespace simt {

struct Site {
  const char* file;
  int line;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

namespace device {

// ---- Who am I. Constant in a thread, which is what the attribute tells the compiler.
[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();

// ---- Launch
using Body = void (*)(void* context);
void launch(const char* kernel,
            dim3 grid,
            dim3 block,
            size_t dynamic_bytes,
            Body body,
            void* context,
            Site site);

template <class Call>
SIMT_UNCHECKED void launch(const char* kernel,
                           dim3 grid,
                           dim3 block,
                           size_t dynamic_bytes,
                           Call call,
                           Site site) {
  const Body body = [](void* context) SIMT_UNCHECKED { (*static_cast<Call*>(context))(); };
  launch(kernel, grid, block, dynamic_bytes, body, &call, site);
}

// A call of a kernel, its arguments converted to the parameters once, as by <<<>>>.
template <class... Parameters, class... Arguments>
auto bind(void (*kernel)(Parameters...), Arguments&&... arguments) {
  return [kernel, bound = std::tuple<Parameters...>(std::forward<Arguments>(arguments)...)] {
    std::apply(kernel, bound);
  };
}

// ---- Shared memory of the block; the address of `key` names a variable.
void* shared_variable(const void* key, size_t bytes, size_t alignment, const char* name);
void* dynamic_shared();

// ---- Barrier of the block
enum class Barrier { kPlain, kAnd, kOr, kCount };
int sync_block(Barrier kind, int predicate, Site site);

// ---- Collectives of a warp
enum class Shuffle { kIndex, kUp, kDown, kXor };
enum class Vote {
  kBallot,
  kAny,
  kAll,
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kSignedMin,
  kSignedMax,
  kMatchAny
};
void sync_warp(unsigned mask, Site site);
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int argument, int width, Site site);
unsigned vote(Vote kind, unsigned mask, unsigned value, Site site);
unsigned active_mask();

// ---- Tensor cores: fragments of m16n8k16, d += a b; registers of n 8x8 matrices of 16 bits
enum class Half { kBFloat16, kFloat16 };
void mma(Half type, float* d, const uint32_t* a, const uint32_t* b, Site site);
void load_matrices(int count, bool transposed, uint32_t* registers, const void* row, Site site);

// ---- cp.async: `source_bytes` are copied, the rest of `bytes` becomes zero
void copy_async(void* shared, const void* global, size_t bytes, size_t source_bytes, Site site);
void commit_copies();
void wait_copies(size_t groups_left);

// ---- Accesses that no hook of the compiler reports
enum class Kind : uint8_t {
  kRead,
  kWrite,
  kAtomic,       // read, modify, write at once
  kCoherentRead  // sees what other blocks wrote: __ldcg, volatile
};
void access(const void* pointer, size_t bytes, Kind kind, Site site);
// A place where another thread may run first.
void reschedule();
[[noreturn]] void trap(Site site);

}  // namespace device
}  // namespace simt
