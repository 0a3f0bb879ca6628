// What a test program shares: its arguments and the files it reads and writes.
//
//     program FOLDER key=value …
//
// reads FOLDER/NAME.bin for each input and writes FOLDER/NAME.bin for each output. Compiled by the host's compiler the
// kernel runs on the fibers of tests/simt/runtime; compiled by nvcc it runs on a GPU, from the same source.
// tests/simt/runtime/program.cpp, compiled once for all programs, contains what does not depend on a type.

#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "csrc/common/types.h"
#include "csrc/cuda/launch.cuh"

namespace simt_test {

void copy(void* target, const void* source, size_t bytes);

class Program {
 public:
  Program(int argc, char** argv);

  bool has(const char* name) const;
  std::string text(const char* name) const;
  int64_t integer(const char* name) const;
  double number(const char* name) const;
  // `count` integers with commas.
  void integers(const char* name, int64_t* values, size_t count) const;

  // The elements of an input, or null if there is no such file.
  template <typename T>
  T* input(const char* name) {
    return static_cast<T*>(input_bytes(name));
  }

  // Room for an output, filled with ones: NaN in every float type.
  template <typename T>
  T* output(const char* name, int64_t count) {
    return static_cast<T*>(output_bytes(name, size_t(count) * sizeof(T)));
  }

  // Adds the output `bank_conflicts`, except on a GPU.
  void output_bank_conflicts();

  // Writes the outputs; returns the exit code of main.
  int finish() const;

  [[noreturn]] static void stop(const std::string& message);

 private:
  void* input_bytes(const char* name);
  void* output_bytes(const char* name, size_t bytes);
  std::string path(const std::string& name) const;

  std::string folder_;
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
  program.output_bank_conflicts();
  return program.finish();
}

}  // namespace simt_test
