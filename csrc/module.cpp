// The Python module vitfast._C: information about the build, the processor and the kernels. It never handles tensors:
// the libraries register the operators with torch.

#include <pybind11/pybind11.h>

#include "csrc/attention/attention.h"

namespace py = pybind11;

namespace {

#define VITFAST_STRINGIZE_(value) #value
#define VITFAST_STRINGIZE(value) VITFAST_STRINGIZE_(value)

#if defined(__clang__)
constexpr const char* compiler = "clang " __clang_version__;
#else
constexpr const char* compiler = "g++ " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler;
  info["cplusplus"] = VITFAST_STRINGIZE(__cplusplus);
  info["python"] = PY_VERSION;
  info["pybind11"] = VITFAST_STRINGIZE(PYBIND11_VERSION_MAJOR) "." VITFAST_STRINGIZE(
      PYBIND11_VERSION_MINOR) "." VITFAST_STRINGIZE(PYBIND11_VERSION_PATCH);
  info["torch_target_version"] = VITFAST_STRINGIZE(TORCH_TARGET_VERSION);
  return info;
}

// Instruction sets that the kernels use -> whether processor and operating system support them.
py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
// the builtin requires literals
#define VITFAST_FEATURE(name) features[name] = bool(__builtin_cpu_supports(name))
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

// Limits of the attention kernels; on the CPU only those of the head dimension.
py::dict attention_limits() {
  py::dict limits;
  limits["max_head_dim"] = vitfast::attention_max_head_dim;
  limits["head_dim_multiple"] = vitfast::attention_head_dim_multiple;
  limits["cuda_max_tokens"] = vitfast::attention_cuda_max_tokens;
  limits["cuda_max_head_dim"] = vitfast::attention_cuda_max_head_dim;
  limits["backward_small_tokens"] = vitfast::attention_backward_small_tokens;
  limits["backward_largest_bytes"] = vitfast::attention_backward_largest_bytes;
  return limits;
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
