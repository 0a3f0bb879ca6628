// Kernels with one fault each: what the emulation has to find.

#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "tests/simt/programs/program.h"

using namespace vitfast;

__global__ void fault_kernel(const float* x, float* y, int fault) {
  SharedMemory shared;
  float* numbers = shared.take<float>(64);
  const int thread = int(threadIdx.x);
  const bool first_warp = thread < 32;
  switch (fault) {
    case 0:  // none
      numbers[thread] = x[thread];
      sync_threads();
      y[thread] = numbers[63 - thread];
      return;
    case 1:  // no barrier between a write and another warp's read
      numbers[thread] = 0.0f;
      sync_threads();
      numbers[thread] = x[thread];
      y[thread] = numbers[63 - thread];
      return;
    case 2:  // no sync_warp between a read and another lane's write
      numbers[thread] = x[thread];
      sync_threads();
      y[thread] = numbers[thread ^ 1];
      numbers[thread] = 0.0f;
      return;
    case 3:  // an exchange of registers orders no memory
      numbers[thread] = x[thread];
      y[thread] = sum_over<2>(x[thread]) + numbers[thread ^ 1];
      return;
    case 4:  // a read of what nothing has written
      y[thread] = numbers[thread];
      return;
    case 5:  // a read before the copy is waited for
      copy_async(numbers + thread / 4 * 4, x + thread / 4 * 4, true);
      commit_copies();
      y[thread] = numbers[thread];
      wait_for_copies<0>();
      return;
    case 6:  // one's own wait says nothing of other threads' copies
      if (thread % 4 == 0) copy_async(numbers + thread, x + thread, true);
      commit_copies();
      wait_for_copies<0>();
      y[thread] = numbers[thread];
      return;
    case 7:  // a copy that is never waited for
      if (thread % 4 == 0) copy_async(numbers + thread, x + thread, true);
      commit_copies();
      return;
    case 8:  // a barrier that one thread reaches while its warp waits for it elsewhere
      if (thread == 0) {
        sync_threads();
      } else {
        sum_over<2>(x[thread]);
      }
      return;
    case 9:  // two barriers of the block at once
      if (first_warp) {
        sync_threads();
      } else {
        sync_threads();
      }
      return;
    case 10:  // lanes of a warp that part
      if (thread % 2 == 0) {
        y[thread] = sum_over<2>(x[thread]);
      } else {
        y[thread] = maximum_over<2>(x[thread]);
      }
      return;
    case 11:  // more shared memory than was asked for
      y[thread] = shared.take<float>(64)[0];
      return;
    case 12:  // behind an array of shared memory
      numbers[thread + 1] = x[thread];
      return;
    case 13:  // behind an array of global memory
      y[thread + 1] = x[thread];
      return;
    case 14:  // an address that is no multiple of 16
      store_pack(y + 1, load_pack(x));
      return;
    case 15:  // an asynchronous copy from behind an array
      if (thread == 63) copy_async(numbers, x + 64, true);
      commit_copies();
      wait_for_copies<0>();
      return;
    default:
      return;
  }
}

int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  float* y = program.output<float>("y", 64);
  launch(fault_kernel, 1, 64, 256, {}, program.input<const float>("x"), y, int(program.integer("fault")));
  return program.finish();
}
