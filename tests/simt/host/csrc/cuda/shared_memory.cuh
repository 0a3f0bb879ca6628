#pragma once

#include "tests/simt/runtime/simt.h"

namespace vitfast {

constexpr int shared_alignment = 16;

template <typename T>
constexpr int shared_bytes(int count) {
  return (count * int(sizeof(T)) + shared_alignment - 1) / shared_alignment * shared_alignment;
}

class SharedMemory {
 public:
  template <typename T>
  T* take(int count, simt::Site site = simt::Site::here()) {
    return static_cast<T*>(simt::take_shared(used_, size_t(shared_bytes<T>(count)), site));
  }

 private:
  size_t used_ = 0;
};

}  // namespace vitfast
