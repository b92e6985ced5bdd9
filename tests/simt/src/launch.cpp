// A launch: block after block, each until its threads have returned.
#include <algorithm>
#include <mutex>
#include <numeric>

#include "barrier.h"
#include "global_memory.h"
#include "hooks.h"
#include "schedule.h"
#include "shared_memory.h"

namespace simt::runtime {
namespace {

constexpr unsigned kMaxThreads = 1024;

// The first and, after others have returned, every later word of a thread.
void run_thread() {
  watching = true;
  launch.body(launch.context);
  watching = false;
  Thread& self = *current;
  self.copies.check_done();
  leave_barrier_of_block();
  leave_collectives(self);
  self.state = State::kDone;
  --launch.block.live;
  if (launch.ready.empty()) leave_kernel();
  current = launch.ready.pop();
  ++stats.switches;
  void* nobody;
  simt_switch_fiber(&nobody, current->stack_pointer);
  __builtin_unreachable();
}

// "(kernel<T>)" of SIMT_LAUNCH without its parentheses.
std::string plain_name(const char* kernel) {
  std::string name = kernel;
  if (name.size() > 2 && name.front() == '(') name = name.substr(1, name.size() - 2);
  return name;
}

void check_shape(dim3 grid, dim3 block, size_t dynamic_bytes, Site site) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const char* wrong = nullptr;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) wrong = "shape of a block";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) wrong = "empty grid";
  if (grid.x > 0x7fffffff || grid.y > 0xffff || grid.z > 0xffff) wrong = "grid too large";
  if (dynamic_bytes > config.max_shared) wrong = "more shared memory than a block can have";
  if (!wrong) return;
  throw Error(format("kernel %s: %s: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes, at %s",
                     launch.kernel.c_str(), wrong, grid.x, grid.y, grid.z, block.x, block.y,
                     block.z, dynamic_bytes, text(site).c_str()));
}

std::vector<unsigned> order_of_blocks(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (config.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (config.order == Order::kRandom) {
    for (unsigned i = count; i > 1; --i) {
      std::swap(order[i - 1], order[launch.random.below(i)]);
    }
  }
  return order;
}

void start_block(unsigned linear, size_t dynamic_bytes) {
  const dim3 grid = launch.grid, size = launch.block_size;
  const unsigned threads = size.x * size.y * size.z;
  launch.block.index = dim3(linear % grid.x, linear / grid.x % grid.y, linear / grid.x / grid.y);
  launch.block.live = threads;
  launch.block.arrived = 0;
  Epochs& epochs = launch.epochs;
  epochs.of_block = ++epochs.now;
  epochs.of_start.push_back(epochs.now);
  epochs.blocks.push_back(linear);
  shared_memory.start_block(dynamic_bytes);

  for (unsigned w = 0; w < (threads + 31) / 32; ++w) {
    launch.warps[w].reset(std::min(threads - w * 32, 32u));
  }
  launch.ready.reset(threads);
  for (unsigned n = 0; n < threads; ++n) {
    const unsigned i = config.order == Order::kReverse ? threads - 1 - n : n;
    Thread& t = launch.threads[i];
    t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    t.block_index = {launch.block.index.x, launch.block.index.y, launch.block.index.z};
    t.linear = i;
    t.warp = i / 32;
    t.lane = i % 32;
    t.stack = launch.stacks.stack(i);
    t.stack_pointer = new_fiber(t.stack, run_thread);
    t.copies.clear();
    make_ready(t);
  }
}

void report_deadlock() {
  std::string waiting;
  std::vector<bool> told(launch.threads.size());
  const unsigned threads = launch.block_size.x * launch.block_size.y * launch.block_size.z;
  for (unsigned i = 0; i < threads; ++i) {
    const Thread& t = launch.threads[i];
    if (told[i] || t.state == State::kDone) continue;
    unsigned alike = 0;
    for (unsigned k = i; k < threads; ++k) {
      const Thread& u = launch.threads[k];
      if (u.state != t.state || !same(u.site, t.site)) continue;
      told[k] = true;
      ++alike;
    }
    waiting += format("%s %u from thread %u on in %s at %s", waiting.empty() ? "" : ",", alike, i,
                      t.what, text(t.site).c_str());
  }
  const dim3 block = launch.block.index;
  launch.failed = true;
  launch.error = format("kernel %s: block (%u,%u,%u): deadlock, threads wait for each other:",
                        launch.kernel.c_str(), block.x, block.y, block.z) +
                 waiting;
}

void run_blocks(size_t dynamic_bytes) {
  for (const unsigned linear : order_of_blocks(launch.grid.x * launch.grid.y * launch.grid.z)) {
    start_block(linear, dynamic_bytes);
    current = launch.ready.pop();
    simt_switch_fiber(&launch.host_stack_pointer, current->stack_pointer);
    current = nullptr;
    watching = false;
    if (!launch.failed && launch.block.live > 0) report_deadlock();
    if (launch.failed) return;
  }
}

}  // namespace
}  // namespace simt::runtime

namespace simt::device {

using namespace simt::runtime;

void launch(const char* kernel,
            dim3 grid,
            dim3 block,
            size_t dynamic_bytes,
            Body body,
            void* context,
            Site site) {
  const std::lock_guard lock(device_mutex);
  Launch& launch = runtime::launch;
  launch.kernel = plain_name(kernel);
  check_shape(grid, block, dynamic_bytes, site);
  if (!hooks_linked()) {
    throw Error("kernel " + launch.kernel + ": compiled without -fsanitize=thread: unchecked");
  }
  ++stats.launches;
  ++launch.number;
  launch.grid = grid;
  launch.block_size = block;
  launch.body = body;
  launch.context = context;
  launch.failed = false;
  launch.error.clear();
  launch.random.seed(config.seed);
  launch.epochs.now = 0;
  launch.epochs.of_start.clear();
  launch.epochs.blocks.clear();
  const unsigned threads = block.x * block.y * block.z;
  launch.stacks.reserve(threads, config.stack_bytes);
  if (threads > launch.threads.size()) launch.threads.resize(threads);
  if (threads > launch.warps.size() * 32) launch.warps.resize((threads + 31) / 32);
  shared_memory.reserve(config.max_shared);
  global_memory.start_launch();
  run_blocks(dynamic_bytes);
  if (launch.failed) throw Error(launch.error);
}

uint3 thread_index() { return current->index; }
uint3 block_index() { return current->block_index; }
dim3 block_size() { return runtime::launch.block_size; }
dim3 grid_size() { return runtime::launch.grid; }

void reschedule() {
  const HooksOff off;
  // Often enough to mix the order of atomics, seldom enough not to be felt.
  if (config.preempt > 0 || runtime::launch.random.below(16) == 0) yield_thread();
}

void trap(Site site) {
  const HooksOff off;
  fail("__trap() at " + text(site));
}

}  // namespace simt::device
