#include "report.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "schedule.h"
#include "source_line.h"

namespace simt::runtime {
namespace {

constexpr int kLineShift = 48;  // user addresses of x86-64 end below

}  // namespace

Place::Place(Site site)
    : bits_(reinterpret_cast<uintptr_t>(site.file) | static_cast<uintptr_t>(site.line)
                                                         << kLineShift) {}

Place::Place(const void* return_address) : bits_(reinterpret_cast<uintptr_t>(return_address)) {}

std::string Place::text() const {
  const int line = static_cast<int>(bits_ >> kLineShift);
  const uintptr_t pointer = bits_ & ((uintptr_t{1} << kLineShift) - 1);
  if (line == 0) return source_line(pointer);
  return runtime::text(Site{reinterpret_cast<const char*>(pointer), line});
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(Site site) { return format("%s:%d", site.file, site.line); }

std::string format(const char* pattern, ...) {
  char buffer[1024];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(buffer, sizeof(buffer), pattern, arguments);
  va_end(arguments);
  return buffer;
}

void fail(const std::string& message) {
  const Thread& t = *current;
  launch.error = format("kernel %s: block (%u,%u,%u) thread (%u,%u,%u), warp %u lane %u: ",
                        launch.kernel.c_str(), t.block_index.x, t.block_index.y, t.block_index.z,
                        t.index.x, t.index.y, t.index.z, t.warp, t.lane) +
                 message;
  launch.failed = true;
  leave_kernel();
}

}  // namespace simt::runtime
