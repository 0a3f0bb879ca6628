// A function that can be left in the middle and gone on with later, on its own stack.

#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Makes the stack, on which `entry(argument)` runs at the first switch; it must not return. `number` shifts the
  // stack.
  void start(void (*entry)(void*), void* argument, int number);

  // Leaves the running fiber (`from`) and resumes this one.
  void switch_from(Fiber& from);

  // To be called first in `entry`.
  static void entered();

 private:
  void* stack_pointer_ = nullptr;
  void* mapping_ = nullptr;  // null for the fiber that main() runs on
  const void* stack_bottom_ = nullptr;
  size_t stack_bytes_ = 0;
};

}  // namespace simt
