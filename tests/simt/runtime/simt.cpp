#include "tests/simt/runtime/simt.h"

#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/simt/runtime/fiber.h"
#include "tests/simt/runtime/race.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace simt {
namespace {

constexpr size_t shared_margin = 1 << 20;  // before shared memory: an overrun of a tensor ends here, wherever it lies
constexpr size_t shared_gap = 128;         // a whole row of banks: the gaps do not change which addresses conflict
constexpr size_t max_arrays = 64;
constexpr int poison = 0xff;

struct Copy {
  void* shared;
  const void* global;
  bool inside;
  Site site;
};

struct Thread {
  Fiber fiber;
  int number = 0;
  bool finished = false;
  const char* waits_for = nullptr;
  Site waits_at{};
  size_t arrays_taken = 0;
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
};

struct Barrier {
  std::vector<Thread*> waiting;
  Site site{};
};

struct Warp {
  void* slots[warp_size];
  int arrived = 0, finished = 0;
  WarpWork work = nullptr;
  Site site{};
};

struct Array {
  char* address;
  size_t bytes;
  Site site;
};

// The grid and the block that run.
const std::function<void()>* kernel = nullptr;
int64_t grid_blocks = 0;
int64_t block_number = 0;
int threads_in_block = 0;
int live_threads = 0;
std::vector<std::unique_ptr<Thread>> threads;
std::deque<Thread*> ready;
std::vector<Warp> warps;
Barrier barrier;
Fiber main_fiber;
Thread* running = nullptr;

char* shared_memory = nullptr;
size_t shared_capacity = 0;
size_t shared_asked = 0;
std::vector<Array> arrays;
size_t shared_end = 0;

std::string place(Site site) {
  return site.file == nullptr ? std::string() : std::string(site.file) + ":" + std::to_string(site.line);
}

bool same(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

[[noreturn]] void report_deadlock() {
  std::fprintf(stderr, "simt: deadlock in block %lld: no thread can go on\n", static_cast<long long>(block_number));
  std::string last;
  for (int i = 0; i < threads_in_block; ++i) {
    const Thread& thread = *threads[i];
    const std::string line = thread.finished
                                 ? std::string("has finished")
                                 : std::string("waits for ") + thread.waits_for + " at " + place(thread.waits_at);
    if (line != last)
      std::fprintf(stderr, "  thread %d%s %s\n", i, i + 1 < threads_in_block ? " and following:" : ":", line.c_str());
    last = line;
  }
  std::fflush(stderr);
  _exit(9);
}

// Leaves the running thread for the next one that can go on.
void run_next() {
  Fiber& from = running->fiber;
  if (ready.empty()) {
    if (live_threads > 0) report_deadlock();
    running = nullptr;
    main_fiber.switch_from(from);
    return;
  }
  Thread* next = ready.front();
  ready.pop_front();
  running = next;
  next->fiber.switch_from(from);
}

void wait(const char* what, Site site) {
  running->waits_for = what;
  running->waits_at = site;
  run_next();
}

void pass_barrier() {
  bool took_part[1024 / warp_size] = {};
  for (Thread* thread : barrier.waiting) {
    took_part[thread->number / warp_size] = true;
    if (thread != running) ready.push_back(thread);
  }
  barrier.waiting.clear();
  race::barrier_passed(took_part);
}

void thread_finished() {
  Thread& thread = *running;
  for (const Copy& copy : thread.open_group)
    fail(copy.site, "pending: an asynchronous copy that is in no group at the end");
  for (const auto& group : thread.groups) {
    for (const Copy& copy : group) fail(copy.site, "pending: an asynchronous copy that is never waited for");
  }
  thread.finished = true;
  ++warps[size_t(thread.number / warp_size)].finished;
  --live_threads;
  // sync_threads waits for the threads that are left
  if (live_threads > 0 && int(barrier.waiting.size()) == live_threads) pass_barrier();
}

void fiber_main(void*) {
  Fiber::entered();
  while (true) {
    (*kernel)();
    thread_finished();
    run_next();
  }
}

std::vector<int64_t> shuffled(int64_t count, const std::string& order, uint64_t salt) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) numbers[size_t(i)] = i;
  if (order == "reversed") {
    std::reverse(numbers.begin(), numbers.end());
  } else if (order != "forward") {
    std::mt19937_64 random(std::strtoull(order.c_str(), nullptr, 10) + salt);
    std::shuffle(numbers.begin(), numbers.end(), random);
  }
  return numbers;
}

void run_block(const std::string& order) {
  arrays.clear();
  shared_end = 0;
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, shared_capacity);
  std::memset(shared_memory, poison, shared_capacity);
  ASAN_POISON_MEMORY_REGION(shared_memory, shared_capacity);
  const int warp_count = (threads_in_block + warp_size - 1) / warp_size;
  race::start_block(shared_memory, shared_capacity, warp_count);
  warps.assign(size_t(warp_count), Warp{});
  live_threads = threads_in_block;
  ready.clear();
  for (const int64_t warp : shuffled(warp_count, order, uint64_t(block_number) + 1)) {
    for (int lane = 0; lane < warp_size && warp * warp_size + lane < threads_in_block; ++lane) {
      Thread& thread = *threads[size_t(warp * warp_size + lane)];
      thread.finished = false;
      thread.arrays_taken = 0;
      thread.groups.clear();
      ready.push_back(&thread);
    }
  }
  running = ready.front();
  ready.pop_front();
  running->fiber.switch_from(main_fiber);
}

void land(const Copy& copy) {
  if (copy.inside) {
    std::memcpy(copy.shared, copy.global, 16);
  } else {
    std::memset(copy.shared, 0, 16);
  }
  race::copy_landed(copy.shared, 16);
}

}  // namespace

Index thread_index() {
  return {unsigned(running->number), 0, 0};
}
Index block_index() {
  return {unsigned(block_number), 0, 0};
}
Index block_size() {
  return {unsigned(threads_in_block), 1, 1};
}
Index grid_size() {
  return {unsigned(grid_blocks), 1, 1};
}

void sync_threads(Site site) {
  if (barrier.waiting.empty()) barrier.site = site;
  if (!same(barrier.site, site)) {
    fail(site, "a thread waits at this sync_threads while others wait at %s", place(barrier.site).c_str());
  }
  barrier.waiting.push_back(running);
  if (int(barrier.waiting.size()) == live_threads) {
    pass_barrier();
  } else {
    wait("sync_threads", site);
  }
}

void with_warp(WarpWork work, void* slot, Site site) {
  const int warp_number = running->number / warp_size;
  Warp& warp = warps[size_t(warp_number)];
  const int first = warp_number * warp_size;
  const int lanes = std::min(warp_size, threads_in_block - first);
  for (int lane = 0; warp.finished != 0 && lane < lanes; ++lane) {
    if (threads[size_t(first + lane)]->finished)
      fail(site, "lane %d of the warp has finished and cannot take part", lane);
  }
  if (lanes < warp_size) fail(site, "the warp has %d threads; whole warps exchange registers", lanes);
  if (warp.arrived == 0) {
    warp.work = work;
    warp.site = site;
  } else if (warp.work != work || !same(warp.site, site)) {
    fail(site, "lanes of a warp have parted: others are at %s", place(warp.site).c_str());
  }
  warp.slots[running->number - first] = slot;
  if (++warp.arrived < lanes) return wait("its warp", site);
  warp.arrived = 0;
  work(warp.slots);
  for (int lane = 0; lane < lanes; ++lane) {
    if (first + lane != running->number) ready.push_back(threads[size_t(first + lane)].get());
  }
}

void sync_warp(Site site) {
  with_warp([](void* const*) { race::warp_synchronized(running->number / warp_size); }, nullptr, site);
}

void* take_shared(size_t& used, size_t bytes, Site site) {
  const size_t number = running->arrays_taken++;
  used += bytes;
  if (used > shared_asked)
    fail(site, "takes %zu bytes of shared memory, but the launch asked for %zu", used, shared_asked);
  if (number == max_arrays) fail(site, "takes more than %zu arrays of shared memory", max_arrays);
  if (number == arrays.size()) {
    shared_end += shared_gap;
    arrays.push_back({shared_memory + shared_end, bytes, site});
    ASAN_UNPOISON_MEMORY_REGION(shared_memory + shared_end, bytes);
    shared_end += (bytes + shared_gap - 1) / shared_gap * shared_gap;
  }
  const Array& array = arrays[number];
  if (array.bytes != bytes || !same(array.site, site)) {
    fail(
        site,
        "threads take different arrays: array %zu has %zu bytes here, %zu at %s",
        number,
        bytes,
        array.bytes,
        place(array.site).c_str());
  }
  return array.address;
}

void copy_async(void* shared, const void* global, bool inside, Site site) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0)
    fail(site, "an asynchronous copy to an address that is no multiple of 16");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail(site, "an asynchronous copy from an address that is no multiple of 16");
  if (static_cast<char*>(shared) < shared_memory || static_cast<char*>(shared) >= shared_memory + shared_capacity) {
    fail(site, "an asynchronous copy to an address outside shared memory");
  }
  if (inside) {  // the source must be readable from now on, whenever the copy lands
    [[maybe_unused]] volatile char sink[16];
    for (int i = 0; i < 16; ++i) sink[i] = static_cast<const char*>(global)[i];
  }
  race::copy_issued(shared, 16);
  std::memset(shared, poison, 16);
  running->open_group.push_back({shared, global, inside, site});
}

void commit_copies() {
  running->groups.push_back(std::move(running->open_group));
  running->open_group.clear();
}

void wait_for_copies(int pending) {
  while (int(running->groups.size()) > pending) {
    for (const Copy& copy : running->groups.front()) land(copy);
    running->groups.pop_front();
  }
}

void note_read(const void* address, size_t bytes) {
  race::read(address, bytes);
}
void note_write(const void* address, size_t bytes) {
  race::write(address, bytes);
}
void note_warp_read(const void* address, size_t bytes) {
  race::warp_read(address, bytes);
}

void run_grid(int64_t blocks, int threads_per_block, size_t shared_bytes, const std::function<void()>& work) {
  if (blocks < 1 || threads_per_block < 1 || threads_per_block > 1024) {
    fail({nullptr, 0}, "a launch of %lld blocks of %d threads", static_cast<long long>(blocks), threads_per_block);
  }
  const char* variable = std::getenv("SIMT_ORDER");
  const std::string order = variable == nullptr || *variable == '\0' ? "forward" : variable;
  kernel = &work;
  grid_blocks = blocks;
  threads_in_block = threads_per_block;
  shared_asked = shared_bytes;
  shared_capacity = (shared_bytes + shared_gap - 1) / shared_gap * shared_gap + 2 * shared_gap * (max_arrays + 1);
  char* const allocated = static_cast<char*>(std::aligned_alloc(shared_gap, shared_margin + shared_capacity));
  ASAN_POISON_MEMORY_REGION(allocated, shared_margin);
  shared_memory = allocated + shared_margin;
  for (int i = int(threads.size()); i < threads_per_block; ++i) {
    threads.push_back(std::make_unique<Thread>());
    threads.back()->number = i;
    threads.back()->fiber.start(fiber_main, nullptr, i);
  }
  for (const int64_t block : shuffled(blocks, order, 0)) {
    block_number = block;
    run_block(order);
  }
  ASAN_UNPOISON_MEMORY_REGION(allocated, shared_margin + shared_capacity);
  race::start_block(nullptr, 0, 0);
  std::free(allocated);
  running = nullptr;
}

void fail(Site site, const char* format, ...) {
  std::fprintf(stderr, "simt: ");
  if (running != nullptr)
    std::fprintf(stderr, "thread %d of block %lld", running->number, static_cast<long long>(block_number));
  if (site.file != nullptr) std::fprintf(stderr, " at %s", place(site).c_str());
  std::fprintf(stderr, ": ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  _exit(9);
}

}  // namespace simt
