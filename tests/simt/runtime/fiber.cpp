#include "tests/simt/runtime/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr size_t page = 4096;
constexpr size_t stack_size = 256 * 1024;
// Stacks at one offset modulo 4096 would share the lines of the first-level cache.
constexpr size_t stack_shift = 704;

const void** leaving_bottom = nullptr;  // where AddressSanitizer notes the stack of the fiber that is left
size_t* leaving_bytes = nullptr;

void arrived(void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, leaving_bottom, leaving_bytes);
#else
  (void)fake_stack;
#endif
}

}  // namespace

#if defined(__x86_64__)

// Saves what a called function must keep, exchanges the stacks, and restores it from the other one.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.type simt_first, @function
simt_first:
  movq %r12, %rdi
  callq *%rbx
  ud2
)");
extern "C" void simt_first();

#else

extern "C" void simt_switch(void** from, void* to) {
  ucontext_t*& slot = reinterpret_cast<ucontext_t*&>(*from);
  if (slot == nullptr) slot = new ucontext_t;
  swapcontext(slot, static_cast<ucontext_t*>(to));
}

#endif

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, stack_size + page);
}

void Fiber::start(void (*entry)(void*), void* argument, int number) {
  mapping_ = mmap(nullptr, stack_size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping_ == MAP_FAILED || mprotect(mapping_, page, PROT_NONE) != 0) {
    std::perror("a stack for a thread of the kernel");
    std::exit(2);
  }
  stack_bottom_ = static_cast<char*>(mapping_) + page;
  stack_bytes_ = stack_size;
  char* top = static_cast<char*>(mapping_) + page + stack_size - size_t(number % 32) * stack_shift;
  top = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(63));
#if defined(__x86_64__)
  // as simt_switch leaves a stack: r15, r14, r13, r12, rbx, rbp, the address to go on at; one word more aligns the call
  void** frame = reinterpret_cast<void**>(top) - 9;
  frame[3] = argument;
  frame[4] = reinterpret_cast<void*>(entry);
  frame[6] = reinterpret_cast<void*>(&simt_first);
  stack_pointer_ = frame;
#else
  ucontext_t* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = const_cast<void*>(stack_bottom_);
  context->uc_stack.ss_size = size_t(top - static_cast<const char*>(stack_bottom_));
  makecontext(context, reinterpret_cast<void (*)()>(entry), 1, argument);
  stack_pointer_ = context;
#endif
}

void Fiber::switch_from(Fiber& from) {
  void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack, stack_bottom_, stack_bytes_);
#endif
  leaving_bottom = &from.stack_bottom_;
  leaving_bytes = &from.stack_bytes_;
  simt_switch(&from.stack_pointer_, stack_pointer_);
  arrived(fake_stack);
}

void Fiber::entered() {
  arrived(nullptr);
}

}  // namespace simt
