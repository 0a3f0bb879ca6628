// Runs a CUDA kernel on the host: a fiber for each thread of a block, blocks one after the other, all on one core.
//
// tests/simt/host replaces the hardware functions of csrc/cuda by calls of the functions declared here. A thread runs
// until it has to wait for others (a barrier, an exchange within its warp); the last thread to arrive does the common
// work. A deadlock is an error that lists where every thread waits.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

constexpr int warp_size = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// A place in the source: the default arguments of a call name the caller's.
struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// The running thread's place.
Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

// --- waiting ---

void sync_threads(Site site);
void sync_warp(Site site);

// Every thread of the warp brings `slot`; when all have, `work` is called once with the 32 of them, by lane.
using WarpWork = void (*)(void* const* slots);
void with_warp(WarpWork work, void* slot, Site site);

// --- memory ---

// The address of the thread's next array in dynamic shared memory. Before every block, shared memory is filled with
// ones (NaN in every float type), and between arrays lie gaps that AddressSanitizer watches.
void* take_shared(size_t& used, size_t bytes, Site site);

// An asynchronous copy of 16 bytes, which lands when its group is waited for; until then its target holds ones.
void copy_async(void* shared, const void* global, bool inside, Site site);
void commit_copies();
void wait_for_copies(int pending);

// Tells the race check of accesses that the compiler does not: those of the runtime itself on a thread's behalf.
void note_read(const void* address, size_t bytes);
void note_write(const void* address, size_t bytes);
void note_warp_read(const void* address, size_t bytes);

// --- launching ---

// Runs `kernel` for every thread of every block. SIMT_ORDER says in which order blocks, and threads of a block, start:
// forward (the default), reversed, or a number, which seeds a shuffle of the blocks and of each block's warps.
void run_grid(int64_t blocks, int threads_per_block, size_t shared_bytes, const std::function<void()>& kernel);

// Prints the message with the running thread's place and ends the program.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace simt
