// How these binaries were built.
#pragma once

#include <string>

namespace lpd::host {

struct BuildInfo {
  std::string version;   // of this project
  std::string compiler;  // name and version
  std::string flags;
  std::string torch;  // the version built against
  std::string cuda;   // the CUDA version built for; empty: CPU only
};

BuildInfo build_info();

}  // namespace lpd::host
