#include "barrier.h"

#include "schedule.h"

namespace simt::runtime {
namespace {

unsigned threads_of_block() {
  return launch.block_size.x * launch.block_size.y * launch.block_size.z;
}

int result_of(const Block& block) {
  switch (block.kind) {
    case device::Barrier::kPlain:
      return 0;
    case device::Barrier::kAnd:
      return block.all;
    case device::Barrier::kOr:
      return block.any;
    case device::Barrier::kCount:
      return block.count;
  }
  __builtin_unreachable();
}

// Everybody is in the barrier: what came before is now ordered before what comes after.
void release(Block& block) {
  ++stats.barriers;
  ++launch.epochs.now;
  block.arrived = 0;
  const int result = result_of(block);
  const unsigned threads = threads_of_block();
  for (unsigned n = 0; n < threads; ++n) {
    Thread& t = launch.threads[config.order == Order::kReverse ? threads - 1 - n : n];
    t.barrier_result = result;
    make_ready(t);
  }
}

}  // namespace

void leave_barrier_of_block() {
  if (launch.block.arrived == 0) return;
  fail("returned while other threads of the block wait in __syncthreads at " +
       text(launch.block.site));
}

}  // namespace simt::runtime

namespace simt::device {

using namespace simt::runtime;

int sync_block(Barrier kind, int predicate, Site site) {
  const HooksOff off;
  Block& block = runtime::launch.block;
  const unsigned threads = threads_of_block();
  if (block.live != threads) {
    fail(format("__syncthreads at %s after %u threads of the block returned", text(site).c_str(),
                threads - block.live));
  }
  if (block.arrived == 0) {
    block.kind = kind;
    block.site = site;
    block.all = true;
    block.any = false;
    block.count = 0;
  } else if (block.kind != kind || !same(block.site, site)) {
    fail("divergent barrier: in __syncthreads at " + text(site) +
         " while other threads of the block wait in the one at " + text(block.site));
  }
  block.all &= predicate != 0;
  block.any |= predicate != 0;
  block.count += predicate != 0;
  current->state = State::kInBlockBarrier;
  if (++block.arrived == threads) release(block);
  wait(current->state, "__syncthreads", site);
  return current->barrier_result;
}

}  // namespace simt::device
