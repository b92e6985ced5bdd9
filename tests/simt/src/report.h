// Errors: where something happened, who did it, and the way out of a kernel.
#pragma once

#include <cstdint>
#include <string>

#include "simt/device.h"

namespace simt::runtime {

// A line of source in one word, so that every cell of shadow memory can afford two: a Site (file in
// the low 48 bits, line above) or the return address of a hook, whose line is looked up when an
// error is printed.
class Place {
 public:
  Place() = default;
  explicit Place(Site site);
  explicit Place(const void* return_address);
  std::string text() const;

 private:
  uintptr_t bits_ = 0;
};

bool same(Site a, Site b);
std::string text(Site site);
// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

// Ends the launch from within a kernel: notes the message, kernel and thread in front of it, and
// leaves the fiber for good.
[[noreturn]] void fail(const std::string& message);

}  // namespace simt::runtime
