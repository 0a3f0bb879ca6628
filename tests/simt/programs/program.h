// What a test program shares: its arguments and the files it reads and writes.
//
//     program FOLDER key=value …
//
// reads FOLDER/NAME.bin for each input and writes FOLDER/NAME.bin for each output. Compiled by the host's compiler the
// kernel runs on the fibers of tests/simt/runtime; compiled by nvcc it runs on a GPU, from the same source.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/common/types.h"
#include "csrc/cuda/launch.cuh"
#if !defined(__CUDACC__)
#include "tests/simt/runtime/matrix_unit.h"
#endif

namespace simt_test {

// Behind the memory that kernels see lie bytes of ones (NaN), which no one may change; with AddressSanitizer, its own
// guard.
#if defined(__CUDACC__) || defined(__SANITIZE_ADDRESS__)
constexpr size_t guard_bytes = 0;
#else
constexpr size_t guard_bytes = 4096;
#endif

inline void* allocate(size_t bytes) {
  void* memory = nullptr;
#if defined(__CUDACC__)
  vitfast::check_cuda(cudaMalloc(&memory, bytes == 0 ? 1 : bytes));
#else
  if (posix_memalign(&memory, 16, bytes + guard_bytes) != 0) std::abort();
  std::memset(static_cast<char*>(memory) + bytes, 0xff, guard_bytes);
#endif
  return memory;
}

inline void copy(void* target, const void* source, size_t bytes) {
#if defined(__CUDACC__)
  vitfast::check_cuda(cudaMemcpy(target, source, bytes, cudaMemcpyDefault));
#else
  if (bytes != 0) std::memcpy(target, source, bytes);
#endif
}

class Program {
 public:
  Program(int argc, char** argv) : folder_(argc > 1 ? argv[1] : ".") {
    for (int i = 2; i < argc; ++i) {
      const std::string word = argv[i];
      const size_t equals = word.find('=');
      if (equals == std::string::npos) stop(word + " is not key=value");
      options_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }

  bool has(const std::string& name) const { return options_.count(name) != 0; }
  std::string text(const std::string& name) const {
    const auto found = options_.find(name);
    if (found == options_.end()) stop("the option " + name + "= is missing");
    return found->second;
  }
  int64_t integer(const std::string& name) const { return std::stoll(text(name)); }
  double number(const std::string& name) const { return std::stod(text(name)); }

  // The elements of an input, or null if there is no such file.
  template <typename T>
  T* input(const std::string& name) {
    std::ifstream file(path(name), std::ios::binary);
    if (!file) return nullptr;
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    void* memory = allocate(bytes.size());
    copy(memory, bytes.data(), bytes.size());
    return static_cast<T*>(memory);
  }

  // Room for an output, filled with ones: NaN in every float type.
  template <typename T>
  T* output(const std::string& name, int64_t count) {
    const std::vector<char> ones(size_t(count) * sizeof(T), char(0xff));
    void* memory = allocate(ones.size());
    copy(memory, ones.data(), ones.size());
    outputs_.push_back({name, memory, ones.size()});
    return static_cast<T*>(memory);
  }

  // Writes the outputs; returns the exit code of main.
  int finish() const {
    for (const Output& output : outputs_) {
      std::vector<char> bytes(output.bytes);
      copy(bytes.data(), output.memory, bytes.size());
      for (size_t i = 0; i != guard_bytes; ++i) {
        if (static_cast<const char*>(output.memory)[output.bytes + i] != char(0xff)) {
          stop("simt: a write behind the end of " + output.name);
        }
      }
      std::ofstream(path(output.name), std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
    }
    return 0;
  }

  [[noreturn]] static void stop(const std::string& message) {
    std::fprintf(stderr, "error: %s\n", message.c_str());
    std::exit(2);
  }

 private:
  struct Output {
    std::string name;
    void* memory;
    size_t bytes;
  };

  std::string path(const std::string& name) const { return folder_ + "/" + name + ".bin"; }

  std::string folder_;
  std::map<std::string, std::string> options_;
  std::vector<Output> outputs_;
};

// torch's name of a type.
template <typename T>
constexpr const char* type_name = nullptr;
template <>
constexpr const char* type_name<vitfast::Half> = "float16";
template <>
constexpr const char* type_name<vitfast::BFloat16> = "bfloat16";
template <>
constexpr const char* type_name<float> = "float32";

// SIMT_TYPE, a type, compiles a program's instances for it alone: quick to compile, for mutation tests.
template <typename T>
#if defined(SIMT_TYPE)
constexpr bool is_compiled = std::is_same_v<T, SIMT_TYPE>;
#else
constexpr bool is_compiled = true;
#endif

// The main of a program: calls `run` with the program and an element of the type, one of these, that type= names.
template <typename... Types, typename Run>
int run_typed(int argc, char** argv, const Run& run) {
  Program program(argc, argv);
  const std::string type = program.text("type");
  const auto run_if_named = [&](auto element) {
    if constexpr (is_compiled<decltype(element)>) {
      if (type == type_name<decltype(element)>) {
        run(program, element);
        return true;
      }
    }
    return false;
  };
  if (!(run_if_named(Types{}) || ...)) Program::stop("no instance is compiled for type=" + type);
#if !defined(__CUDACC__)
  *program.output<uint64_t>("bank_conflicts", 1) = simt::bank_conflicts();
#endif
  return program.finish();
}

}  // namespace simt_test
