#include "schedule.h"

#include <bit>
#include <utility>

namespace simt {

Config config;
Stats stats;

}  // namespace simt

namespace simt::runtime {

Launch launch;
thread_local Thread* current = nullptr;
thread_local bool watching = false;

void ReadyQueue::reset(size_t threads) {
  const size_t size = std::bit_ceil(threads + 1);
  if (size > ring_.size()) ring_.resize(size);
  mask_ = ring_.size() - 1;
  head_ = tail_ = 0;
}

Thread* ReadyQueue::pop() {
  if (config.order == Order::kRandom) {
    const uint32_t waiting = static_cast<uint32_t>(tail_ - head_);
    std::swap(ring_[head_ & mask_], ring_[(head_ + launch.random.below(waiting)) & mask_]);
  }
  return ring_[head_++ & mask_];
}

namespace {

// From one fiber straight to the next; to launch() where nobody can run.
void run_next() {
  Thread* self = current;
  if (launch.ready.empty()) {
    simt_switch_fiber(&self->stack_pointer, launch.host_stack_pointer);
    return;
  }
  Thread* next = launch.ready.pop();
  if (next == self) return;
  ++stats.switches;
  current = next;
  simt_switch_fiber(&self->stack_pointer, next->stack_pointer);
}

}  // namespace

void wait(State state, const char* what, Site site) {
  current->state = state;
  current->what = what;
  current->site = site;
  run_next();
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  launch.ready.push(&thread);
}

void yield_thread() {
  make_ready(*current);
  run_next();
}

void leave_kernel() {
  void* nobody;
  simt_switch_fiber(&nobody, launch.host_stack_pointer);
  __builtin_unreachable();
}

}  // namespace simt::runtime
