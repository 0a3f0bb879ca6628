#include <cstdlib>
#include <string>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <torch/csrc/stable/library.h>

#include "csrc/cpu/kernels.h"
#include "csrc/packed/packed.h"

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

bool has_avx512_vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

bool has_avx512_bf16() {
  return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16");
}

// The tiles, and Linux's leave to use them, which a process has to ask for.
bool has_avx512_amx() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  return has_avx512_bf16() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-int8") &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

// An instruction set's kernels; those that only products know share the others with avx512.
struct InstructionSet {
  const CpuKernels* kernels;
  const PackedKernels* packed;
};

InstructionSet choose() {
  const char* variable = std::getenv("VITFAST_ISA");
  const std::string wanted = variable == nullptr || *variable == 0 ? "auto" : variable;
  if (wanted == "baseline") return {&baseline::kernels, &baseline::packed_kernels};
#if defined(__x86_64__)
  const auto is_wanted = [&](const char* name) { return wanted == "auto" || wanted == name; };
  if (is_wanted("avx512_amx") && has_avx512_amx()) return {&avx512::kernels, &avx512_amx::packed_kernels};
  // Intel's instruction for bfloat16 takes four times as long as a multiply-add of float32 (Emerald Rapids: 81 and 155
  // GFLOP/s a core), AMD's as long
  const bool is_slow = wanted == "auto" && __builtin_cpu_is("intel");
  if (is_wanted("avx512_bf16") && has_avx512_bf16() && !is_slow) {
    return {&avx512::kernels, &avx512_bf16::packed_kernels};
  }
  if (is_wanted("avx512_vnni") && has_avx512_vnni()) return {&avx512::kernels, &avx512_vnni::packed_kernels};
  if (is_wanted("avx512") && has_avx512()) return {&avx512::kernels, &avx512::packed_kernels};
  if (is_wanted("avx2") && has_avx2()) return {&avx2::kernels, &avx2::packed_kernels};
#endif
  STD_TORCH_CHECK(
      wanted == "auto",
      "VITFAST_ISA=",
      wanted,
      ": this processor does not have that instruction set; unset VITFAST_ISA, or use VITFAST_ISA=baseline");
  return {&baseline::kernels, &baseline::packed_kernels};
}

const InstructionSet& chosen() {
  static const InstructionSet set = choose();
  return set;
}

std::string cpu_capability() {
  return packed_kernels().name;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  return *chosen().kernels;
}

const PackedKernels& packed_kernels() {
  return *chosen().packed;
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

}  // namespace vitfast
