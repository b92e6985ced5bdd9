#include "host_memory.h"

#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <vector>

#include "fiber.h"

namespace simt::runtime {
namespace {

Span find_host_stack() {
  pthread_attr_t attributes;
  void* begin = nullptr;
  size_t bytes = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &begin, &bytes);
    pthread_attr_destroy(&attributes);
  }
  return {reinterpret_cast<uintptr_t>(begin), bytes};
}

int add_segments(dl_phdr_info* info, size_t, void* out) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_LOAD) continue;
    static_cast<std::vector<Span>*>(out)->push_back(
        {info->dlpi_addr + header.p_vaddr, header.p_memsz});
  }
  return 0;
}

bool in_program(uintptr_t address) {
  static std::vector<Span> segments;
  const auto known = [&] {
    return std::ranges::any_of(segments, [&](const Span& s) { return s.holds(address); });
  };
  if (known()) return true;
  segments.clear();  // a library may have come since
  dl_iterate_phdr(add_segments, &segments);
  return known();
}

}  // namespace

bool in_host_memory(uintptr_t address) {
  static thread_local const Span host_stack = find_host_stack();
  return host_stack.holds(address) || in_program(address);
}

}  // namespace simt::runtime
