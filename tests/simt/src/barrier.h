// The barrier of a block, seen by a thread that returns.
#pragma once

namespace simt::runtime {

// An error where other threads wait in the barrier for the current one.
void leave_barrier_of_block();

}  // namespace simt::runtime
