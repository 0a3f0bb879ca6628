// The Python module vitfast._C: information about the build, the processor and the kernels. It never handles tensors:
// the libraries register the operators with torch.

#include <map>
#include <string>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/attention/attention.h"

namespace {

#define VITFAST_STRINGIZE_(value) #value
#define VITFAST_STRINGIZE(value) VITFAST_STRINGIZE_(value)

#if defined(__clang__)
constexpr const char* compiler = "clang " __clang_version__;
#else
constexpr const char* compiler = "g++ " __VERSION__;
#endif

std::map<std::string, std::string> build_info() {
  return {
      {"compiler", compiler},
      {"cplusplus", VITFAST_STRINGIZE(__cplusplus)},
      {"python", PY_VERSION},
      {"pybind11",
       VITFAST_STRINGIZE(PYBIND11_VERSION_MAJOR) "." VITFAST_STRINGIZE(PYBIND11_VERSION_MINOR) "." VITFAST_STRINGIZE(
           PYBIND11_VERSION_PATCH)},
      {"torch_target_version", VITFAST_STRINGIZE(TORCH_TARGET_VERSION)},
  };
}

// Instruction sets that the kernels use -> whether processor and operating system support them.
std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
// the builtin requires literals
#define VITFAST_FEATURE(name) features[name] = __builtin_cpu_supports(name) != 0
  VITFAST_FEATURE("avx2");
  VITFAST_FEATURE("fma");
  VITFAST_FEATURE("f16c");
  VITFAST_FEATURE("avx512f");
  VITFAST_FEATURE("avx512bw");
  VITFAST_FEATURE("avx512dq");
  VITFAST_FEATURE("avx512vl");
  VITFAST_FEATURE("avx512bf16");
  VITFAST_FEATURE("avx512vnni");
  VITFAST_FEATURE("avx512vbmi");
  VITFAST_FEATURE("amx-tile");
  VITFAST_FEATURE("amx-bf16");
  VITFAST_FEATURE("amx-int8");
#undef VITFAST_FEATURE
#endif
  return features;
}

// Limits of the attention kernels; those of max_tokens, whole_max_tokens and shared_bytes are for CUDA.
std::map<std::string, int> attention_limits() {
  return {
      {"max_head_dim", vitfast::attention_max_head_dim},
      {"head_dim_multiple", vitfast::attention_head_dim_multiple},
      {"max_tokens", vitfast::attention_max_tokens},
      {"whole_max_tokens", vitfast::attention_whole_max_tokens},
      {"shared_bytes", vitfast::attention_max_shared_bytes},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "How vitfast was built, what the processor supports, and limits of the kernels.";
  m.def("build_info", &build_info, "The compiler, the C++ standard, and the versions built against.");
  m.def(
      "cpu_features",
      &cpu_features,
      "Instruction set -> whether this processor supports it; empty on other architectures.");
  m.def("attention_limits", &attention_limits, "Limits of the attention kernels.");
}
