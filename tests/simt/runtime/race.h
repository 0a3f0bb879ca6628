// The race check of shared memory: two accesses to one byte, at least one of them a write, that no barrier orders;
// reads of bytes that nothing has written; any access to the target of an asynchronous copy before its wait.
//
// The compiler reports the kernel's plain accesses: its file is compiled with -fsanitize=thread, and race.cpp defines
// the functions that this calls. What the runtime does on a thread's behalf it reports itself. Without SIMT_RACE all
// this is empty.

#pragma once

#include <cstddef>
#include <cstdint>

namespace simt::race {

#if defined(SIMT_RACE)

void start_block(const void* shared, size_t bytes, int warps);
void warp_synchronized(int warp);
void barrier_passed(const bool* warps);  // for each warp, whether it took part
void read(const void* address, size_t bytes);
void write(const void* address, size_t bytes);
void warp_read(const void* address, size_t bytes);
void copy_issued(const void* address, size_t bytes);
void copy_landed(const void* address, size_t bytes);

#else

inline void start_block(const void*, size_t, int) {}
inline void warp_synchronized(int) {}
inline void barrier_passed(const bool*) {}
inline void read(const void*, size_t) {}
inline void write(const void*, size_t) {}
inline void warp_read(const void*, size_t) {}
inline void copy_issued(const void*, size_t) {}
inline void copy_landed(const void*, size_t) {}

#endif

}  // namespace simt::race
