// The functions that GCC's ThreadSanitizer and UBSan instrumentation calls, in place of their
// libraries (which are not linked): every plain load and store of unmodified source comes by here.
#include "hooks.h"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "access.h"
#include "schedule.h"

namespace simt::runtime {
namespace {

bool linked = false;

[[gnu::noinline]] void fail_misaligned(uintptr_t address, size_t bytes, const void* caller) {
  fail(format("misaligned access of %zu bytes: %s at %s", bytes, describe(address).c_str(),
              Place(caller).text().c_str()));
}

// `alignment`: what the type demands; 1 where the compiler knows that it demands less.
inline void watch(const void* pointer,
                  size_t bytes,
                  size_t alignment,
                  device::Kind kind,
                  const void* caller) {
  if (!watching) return;  // host code in the same file, or the runtime itself
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (current->stack.holds(address)) return;  // a local variable
  const HooksOff off;
  if (address % alignment != 0) fail_misaligned(address, bytes, caller);
  check_access(address, bytes, kind, Place(caller));
}

// The data of each UBSan handler begin with this.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

// In a kernel an error like any other; on the host, where launchers share the flags, the end.
[[noreturn]] void undefined(const void* data, const std::string& what) {
  const auto& location = *static_cast<const SourceLocation*>(data);
  const Site site{location.file, static_cast<int>(location.line)};
  if (current) fail(what + " at " + text(site));
  std::fprintf(stderr, "%s: %s\n", text(site).c_str(), what.c_str());
  std::abort();
}

}  // namespace

bool hooks_linked() { return linked; }

}  // namespace simt::runtime

using simt::device::Kind;
using namespace simt::runtime;

extern "C" {

#define SIMT_HOOK(name, bytes, alignment, kind)                          \
  void __tsan_##name##bytes(void* p) {                                   \
    watch(p, bytes, alignment, Kind::kind, __builtin_return_address(0)); \
  }
#define SIMT_HOOKS(bytes)                               \
  SIMT_HOOK(read, bytes, bytes, kRead)                  \
  SIMT_HOOK(write, bytes, bytes, kWrite)                \
  SIMT_HOOK(unaligned_read, bytes, 1, kRead)            \
  SIMT_HOOK(unaligned_write, bytes, 1, kWrite)          \
  SIMT_HOOK(volatile_read, bytes, bytes, kCoherentRead) \
  SIMT_HOOK(volatile_write, bytes, bytes, kWrite)
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

void __tsan_read_range(void* p, size_t bytes) {
  watch(p, bytes, 1, Kind::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  watch(p, bytes, 1, Kind::kWrite, __builtin_return_address(0));
}

void __tsan_init() { linked = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Initialisation of function-local statics on the host (kernels have no C++ atomics of their own).
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

void __ubsan_handle_type_mismatch_v1(void* data, void* pointer) {
  const HooksOff off;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  undefined(data, address == 0 ? "null pointer" : "misaligned pointer: " + describe(address));
}
void __ubsan_handle_out_of_bounds(void* data, void*) {
  const HooksOff off;
  undefined(data, "array index out of bounds");
}
void __ubsan_handle_shift_out_of_bounds(void* data, void*, void*) {
  const HooksOff off;
  undefined(data, "shift out of range");
}
void __ubsan_handle_divrem_overflow(void* data, void*, void*) {
  const HooksOff off;
  undefined(data, "division by zero");
}
}
