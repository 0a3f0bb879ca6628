#include "tests/simt/programs/program.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

#if !defined(__CUDACC__)
#include "tests/simt/runtime/matrix_unit.h"
#endif

namespace simt_test {
namespace {

// Behind the memory that kernels see lie bytes of ones (NaN), which no one may change; with AddressSanitizer, its own
// guard.
#if defined(__CUDACC__) || defined(__SANITIZE_ADDRESS__)
constexpr size_t guard_bytes = 0;
#else
constexpr size_t guard_bytes = 4096;
#endif

struct Output {
  std::string name;
  void* memory;
  size_t bytes;
};

std::map<std::string, std::string> options;
std::vector<Output> outputs;

void* allocate(size_t bytes) {
  void* memory = nullptr;
#if defined(__CUDACC__)
  vitfast::check_cuda(cudaMalloc(&memory, bytes == 0 ? 1 : bytes));
#else
  if (posix_memalign(&memory, 16, bytes + guard_bytes) != 0) std::abort();
  std::memset(static_cast<char*>(memory) + bytes, 0xff, guard_bytes);
#endif
  return memory;
}

}  // namespace

void copy(void* target, const void* source, size_t bytes) {
#if defined(__CUDACC__)
  vitfast::check_cuda(cudaMemcpy(target, source, bytes, cudaMemcpyDefault));
#else
  if (bytes != 0) std::memcpy(target, source, bytes);
#endif
}

Program::Program(int argc, char** argv) : folder_(argc > 1 ? argv[1] : ".") {
  for (int i = 2; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (equals == std::string::npos) stop(word + " is not key=value");
    options[word.substr(0, equals)] = word.substr(equals + 1);
  }
}

bool Program::has(const char* name) const {
  return options.count(name) != 0;
}
std::string Program::text(const char* name) const {
  const auto found = options.find(name);
  if (found == options.end()) stop(std::string("the option ") + name + "= is missing");
  return found->second;
}
int64_t Program::integer(const char* name) const {
  return std::stoll(text(name));
}
double Program::number(const char* name) const {
  return std::stod(text(name));
}
void Program::integers(const char* name, int64_t* values, size_t count) const {
  std::istringstream words(text(name));
  size_t found = 0;
  for (std::string word; std::getline(words, word, ','); ++found) {
    if (found < count) values[found] = std::stoll(word);
  }
  if (found != count) stop(std::string(name) + "= requires " + std::to_string(count) + " integers");
}

void* Program::input_bytes(const char* name) {
  std::ifstream file(path(name), std::ios::binary | std::ios::ate);
  if (!file) return nullptr;
  std::vector<char> bytes(size_t(file.tellg()));
  file.seekg(0).read(bytes.data(), std::streamsize(bytes.size()));
  void* memory = allocate(bytes.size());
  copy(memory, bytes.data(), bytes.size());
  return memory;
}

void* Program::output_bytes(const char* name, size_t bytes) {
  const std::vector<char> ones(bytes, char(0xff));
  void* memory = allocate(bytes);
  copy(memory, ones.data(), bytes);
  outputs.push_back({name, memory, bytes});
  return memory;
}

void Program::output_bank_conflicts() {
#if !defined(__CUDACC__)
  *output<uint64_t>("bank_conflicts", 1) = simt::bank_conflicts();
#endif
}

int Program::finish() const {
  for (const Output& output : outputs) {
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

void Program::stop(const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(2);
}

std::string Program::path(const std::string& name) const {
  return folder_ + "/" + name + ".bin";
}

}  // namespace simt_test
