// Element types of the tensors a kernel takes as void pointers.
#pragma once

namespace lpd {

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

}  // namespace lpd
