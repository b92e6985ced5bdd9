// The launch in progress: its threads, its warps, the block that runs, and who is next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "async_copy.h"
#include "fiber.h"
#include "report.h"
#include "simt/device.h"
#include "simt/runtime.h"
#include "warp.h"

namespace simt::runtime {

enum class State : uint8_t { kReady, kInBlockBarrier, kInWarpCollective, kDone };

struct Thread {
  uint3 index, block_index;
  unsigned linear, warp, lane;
  State state;
  Span stack;
  void* stack_pointer;
  Site site;         // of the barrier or collective it waits in
  const char* what;  // and its name
  int barrier_result;
  CopyQueue copies;
};

// The one block that is resident; blocks run one after another.
struct Block {
  dim3 index;
  unsigned live;     // threads that have not returned
  unsigned arrived;  // in the barrier below
  device::Barrier kind;
  Site site;
  bool all, any;
  int count;
};

// Moments between barriers, counted through a launch: accesses of two threads of a block with
// different epochs are ordered.
struct Epochs {
  uint32_t now;
  uint32_t of_block;               // the first one of this block
  std::vector<uint32_t> of_start;  // for each block so far, its first one
  std::vector<unsigned> blocks;    // and its number, for messages
};

// Threads that could run, each at most once: a ring.
class ReadyQueue {
 public:
  void reset(size_t threads);
  bool empty() const { return head_ == tail_; }
  void push(Thread* thread) { ring_[tail_++ & mask_] = thread; }
  Thread* pop();

 private:
  std::vector<Thread*> ring_;
  size_t mask_ = 0, head_ = 0, tail_ = 0;
};

class Random {
 public:
  void seed(uint64_t seed) { state_ = seed * 0x9E3779B97F4A7C15 | 1; }
  // Below `bound`.
  uint32_t below(uint32_t bound) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>((state_ >> 32) * bound >> 32);
  }

 private:
  uint64_t state_ = 1;
};

// One launch at a time in a process; this is it. Vectors keep their memory between launches.
struct Launch {
  uint32_t number = 0;
  std::string kernel;
  dim3 grid, block_size;
  device::Body body;
  void* context;
  bool failed;
  std::string error;
  FiberStacks stacks;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Block block;
  Epochs epochs;
  ReadyQueue ready;
  Random random;
  void* host_stack_pointer;  // of launch() itself
};
extern Launch launch;

// The thread of the kernel that runs on this host thread; none outside of kernels.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));
// Whether the compiler's hooks check what they are told: in a kernel, but not within the runtime.
extern thread_local bool watching __attribute__((tls_model("initial-exec")));

// Stands in every function that kernels call. The linker keeps one copy of a template's code, and
// for std::string and the like it may be one of an instrumented file: run by the runtime, it would
// be taken for the kernel's.
class HooksOff {
 public:
  HooksOff() : before_(watching) { watching = false; }
  ~HooksOff() { watching = before_; }
  HooksOff(const HooksOff&) = delete;
  HooksOff& operator=(const HooksOff&) = delete;

 private:
  bool before_;
};

inline Warp& warp_of(const Thread& thread) { return launch.warps[thread.warp]; }

// Lets others run until make_ready(current).
void wait(State state, const char* what, Site site);
void make_ready(Thread& thread);
// Lets another thread run first, if one can.
void yield_thread();
// Back to launch(), never to return.
[[noreturn]] void leave_kernel();

}  // namespace simt::runtime
