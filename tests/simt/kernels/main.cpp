// cases NAME [ORDER [SEED [PREEMPT]]]: prints "ok", or what went wrong.
#include <cstdio>
#include <cstdlib>

#include "cases.h"

std::map<std::string, void (*)()>& all_cases() {
  static std::map<std::string, void (*)()> cases;
  return cases;
}

static void list_cases() {
  for (const auto& [name, run] : all_cases()) std::puts(name.c_str());
}

int main(int count, char** arguments) {
  if (count < 2) return list_cases(), 0;
  const auto number = [&](int i) {
    return i < count ? std::strtoull(arguments[i], nullptr, 10) : 0;
  };
  if (simt_configure(static_cast<int>(number(2)), number(3), static_cast<unsigned>(number(4)))) {
    return std::fputs("no such order\n", stderr), 2;
  }
  try {
    all_cases().at(arguments[1])();
    std::puts("ok");
  } catch (const simt::Error& error) {
    std::printf("%s\n", error.what());
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
