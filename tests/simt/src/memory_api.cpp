// Registration and allocation of memory, as the host asks for them.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <new>

#include "global_memory.h"

namespace simt {

using namespace simt::runtime;

namespace {

struct Allocation {
  void* pages;
  size_t bytes;
};
std::map<void*, Allocation> allocations;

}  // namespace

void register_memory(const void* pointer, size_t bytes, Access access, const char* name) {
  if (bytes == 0) return;
  const std::lock_guard lock(device_mutex);
  global_memory.add({{reinterpret_cast<uintptr_t>(pointer), bytes}, access, name});
}

void unregister_memory(const void* pointer) {
  const std::lock_guard lock(device_mutex);
  global_memory.remove(reinterpret_cast<uintptr_t>(pointer));
}

void* allocate(size_t bytes, Access access, const char* name) {
  // The end, to 16 bytes, is flush with the second inaccessible page.
  const size_t used = (bytes + 15) / 16 * 16, body = (used + kHostPage - 1) / kHostPage * kHostPage;
  void* pages = mmap(nullptr, body + 2 * kHostPage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(pages);
  mprotect(first, kHostPage, PROT_NONE);
  mprotect(first + kHostPage + body, kHostPage, PROT_NONE);
  char* pointer = first + kHostPage + body - used;
  std::memset(pointer, 0xff, bytes);
  register_memory(pointer, bytes, access, name);
  const std::lock_guard lock(device_mutex);
  allocations[pointer] = {pages, body + 2 * kHostPage};
  return pointer;
}

void release(void* pointer) {
  unregister_memory(pointer);
  const std::lock_guard lock(device_mutex);
  const auto it = allocations.find(pointer);
  if (it == allocations.end()) return;
  munmap(it->second.pages, it->second.bytes);
  allocations.erase(it);
}

}  // namespace simt
