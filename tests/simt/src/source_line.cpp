#include "source_line.h"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cstdio>

#include "report.h"

namespace simt::runtime {
namespace {

std::string first_line_of(const std::string& command) {
  std::string line;
  if (FILE* pipe = popen(command.c_str(), "r")) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) line += static_cast<char>(c);
    pclose(pipe);
  }
  return line;
}

}  // namespace

std::string source_line(uintptr_t return_address) {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(return_address), &info) || !info.dli_fname) {
    return format("code at %#zx", return_address);
  }
  const bool relocated = static_cast<const Elf64_Ehdr*>(info.dli_fbase)->e_type == ET_DYN;
  const uintptr_t base = relocated ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
  const uintptr_t offset = return_address - 1 - base;  // within the call itself
  // A program started through PATH has a name that is no path.
  const char* file = access(info.dli_fname, R_OK) == 0 ? info.dli_fname : "/proc/self/exe";
  char self[4096];
  if (const ssize_t n = readlink(file, self, sizeof(self) - 1); n > 0 && *file == '/') {
    self[n] = '\0';  // addr2line has a /proc/self of its own
    if (file != info.dli_fname) file = self;
  }
  const std::string line =
      first_line_of(format("addr2line -e '%s' %#zx 2>/dev/null", file, offset));
  if (line.empty() || line[0] == '?') return format("%s+%#zx", file, offset);
  return line.substr(0, line.find(" (discriminator"));
}

}  // namespace simt::runtime
