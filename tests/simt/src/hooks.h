// What the compiler calls in code built with -fsanitize=thread,alignment,bounds,shift and for a
// division by zero.
#pragma once

namespace simt::runtime {

// Whether any such code is in the program.
bool hooks_linked();

}  // namespace simt::runtime
