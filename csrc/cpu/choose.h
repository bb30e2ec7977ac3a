// Chooses the table of kernels for this machine. Not to be included by kernel files, which must not share inline functions
// with others; see math/host_device.h.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gradalign {

#if defined(__x86_64__)
// Conversions from and to float16. A virtual machine may hide them and show AVX2. Compilers that have no name for them in
// __builtin_cpu_supports are still in use.
inline bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Everything that the tables are compiled with, which gradalign/extension/processor.py lists too.
inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best table in this binary that the processor runs, or the one that GRADALIGN_CPU_ISA names.
inline const Kernels& choose_kernels() {
  const char* named = std::getenv("GRADALIGN_CPU_ISA");
  const bool any = named == nullptr || *named == '\0';
  std::string there;
  const auto chosen = [&](const char* isa, const Kernels* table) {
    if (table == nullptr) return false;
    there += std::string(there.empty() ? "" : " or ") + isa;
    return any || std::strcmp(named, isa) == 0;
  };
#if defined(__x86_64__)
  if (has_avx512() && chosen("avx512", &kernels_avx512)) return kernels_avx512;
  if (has_avx2() && chosen("avx2", &kernels_avx2)) return kernels_avx2;
#endif
  if (chosen("portable", &kernels_portable)) return kernels_portable;
  if (there.empty()) there = "a CPU with the instruction set that these kernels were compiled for";
  throw std::runtime_error("GRADALIGN_CPU_ISA: expected " + there + "; got " + (any ? "another" : named) +
                           "; it is read when the kernels are loaded");
}

inline const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

}  // namespace gradalign
