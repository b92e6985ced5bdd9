// The host's side of the SIMT runtime: settings, counters, and the memory that kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace simt {

// What a launch throws for anything wrong in a kernel. The message names kernel, block, thread,
// what happened, to which variable, and the line. The next launch works as if nothing had been.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { kForward, kReverse, kRandom };

// Read at each launch.
struct Config {
  static constexpr Order kForward = Order::kForward;
  static constexpr Order kReverse = Order::kReverse;
  static constexpr Order kRandom = Order::kRandom;

  Order order = kForward;  // of blocks, and of threads where several may run
  uint64_t seed = 1;       // of kRandom and of `preempt`
  unsigned preempt = 0;    // n > 0: another thread runs before about one in n shared accesses
  size_t stack_bytes = 64 << 10;  // of a thread
  size_t max_shared = 99 << 10;   // of a block: what sm_86, sm_89 and sm_120 can opt in to
};
extern Config config;

// Counted since the process began. simt_stats() gives them in this order.
struct Stats {
  uint64_t launches;
  uint64_t accesses;  // checked, in shared and global memory
  uint64_t switches;  // from one thread to another
  uint64_t barriers;  // of blocks
  uint64_t mma;
  uint64_t async_copies;
  uint64_t ldmatrix_phases;  // groups of eight rows
  uint64_t bank_conflicts;   // phases in which two rows met in a bank
};
extern Stats stats;

enum class Access {
  kRead,       // a write is an error
  kReadWrite,  // holds values already
  kWrite       // a result: reading a byte that this launch has not written is an error
};

// Tells the runtime of memory that kernels may touch; all other memory is out of bounds. Ranges may
// overlap: a byte may then be read or written if one of them says so. No bytes: nothing happens.
void register_memory(const void* pointer, size_t bytes, Access access, const char* name);
void unregister_memory(const void* pointer);

// Registered memory with an inaccessible page before it and after it.
void* allocate(size_t bytes, Access access, const char* name);
void release(void* pointer);

// Registers memory for a scope.
class Memory {
 public:
  Memory(const void* pointer, size_t bytes, Access access, const char* name)
      : pointer_(bytes > 0 ? pointer : nullptr) {
    register_memory(pointer, bytes, access, name);
  }
  ~Memory() { unregister_memory(pointer_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

 private:
  const void* pointer_;
};

}  // namespace simt

// The same for a program that loads the library at run time (ctypes).
extern "C" {
// order: 0 forward, 1 reverse, 2 random. Returns 0, or 1 for an order that is none of them.
int simt_configure(int order, uint64_t seed, unsigned preempt);
// Writes the first `count` fields of Stats; returns how many there are.
int simt_stats(uint64_t* out, int count);
}
