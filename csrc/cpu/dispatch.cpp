#include <cstdlib>
#include <string>

#include <torch/csrc/stable/library.h>

#include "csrc/cpu/kernels.h"

namespace vitfast {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const CpuKernels& choose() {
  const char* variable = std::getenv("VITFAST_ISA");
  const std::string wanted = variable == nullptr || *variable == 0 ? "auto" : variable;
  if (wanted == "baseline") return baseline::kernels;
#if defined(__x86_64__)
  if ((wanted == "auto" || wanted == "avx512") && has_avx512()) return avx512::kernels;
  if ((wanted == "auto" || wanted == "avx2") && has_avx2()) return avx2::kernels;
#endif
  STD_TORCH_CHECK(
      wanted == "auto",
      "VITFAST_ISA=",
      wanted,
      ": this processor does not have that instruction set; unset VITFAST_ISA, or use VITFAST_ISA=baseline");
  return baseline::kernels;
}

std::string cpu_capability() {
  return cpu_kernels().name;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

}  // namespace vitfast
