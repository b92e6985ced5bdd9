// token_selection on the CPU: the choice among its variants, which give the same ids.
#include "lpd/token_selection.h"

#include <cstddef>
#include <cstdint>

#include "lpd/cpu_variant.h"
#include "lpd/inline.h"
#include "target.h"
#include "token_selection_space.h"

namespace lpd::cpu {

namespace plain {
void token_selection(const TokenSelectionParams&, int64_t begin, int64_t end, std::byte* workspace);
}
#if defined(LPD_X86)
namespace avx2 {
void token_selection(const TokenSelectionParams&, int64_t begin, int64_t end, std::byte* workspace);
}
namespace avx512 {
void token_selection(const TokenSelectionParams&, int64_t begin, int64_t end, std::byte* workspace);
}
#endif

size_t token_selection_workspace_size(int64_t vocab_size) {
  return row_space(nullptr, vocab_size).size;
}

void token_selection(const TokenSelectionParams& params,
                     int64_t begin,
                     int64_t end,
                     std::byte* workspace) {
#if defined(LPD_X86)
  if (variant() >= Variant::kAvx512) return avx512::token_selection(params, begin, end, workspace);
  if (variant() >= Variant::kAvx2) return avx2::token_selection(params, begin, end, workspace);
#endif
  plain::token_selection(params, begin, end, workspace);
}

}  // namespace lpd::cpu
