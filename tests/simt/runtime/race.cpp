#include "tests/simt/runtime/race.h"

#if defined(SIMT_RACE)

#include <vector>

#include "tests/simt/runtime/simt.h"

namespace simt::race {
namespace {

// Each warp counts its synchronizations (of the warp, or of the block) as a clock. A warp observes another's
// accesses up to the time at which a barrier last joined the two.
constexpr int max_warps = 32;
constexpr int several_lanes = -1;

struct Access {
  int32_t time = 0;  // 0: never
  int16_t warp = 0;
  int16_t lane = 0;
};

const char* first_byte = nullptr;
size_t bytes_watched = 0;
int warps = 0;
int32_t time_of[max_warps];
int32_t known[max_warps][max_warps];  // known[w][u]: accesses of u before this time happened before what w does now
std::vector<Access> last_write;       // [byte]
std::vector<Access> last_read;        // [byte][warp]
std::vector<int16_t> pending;         // [byte]: the thread whose copy is under way, plus one

// Who accesses: asked for once an access, which has several bytes.
struct Place {
  int warp, lane;
  static Place of_running_thread() {
    const int thread = int(thread_index().x);
    return {thread / warp_size, thread % warp_size};
  }
};

bool happened_before(const Access& access, Place place) {
  const auto [warp, lane] = place;
  if (access.time == 0) return true;
  if (access.warp != warp) return access.time < known[warp][access.warp];
  return access.time < time_of[warp] || (access.lane == lane && lane != several_lanes);
}

[[noreturn]] void report(const char* what, size_t byte, const Access& other) {
  fail(
      {nullptr, 0},
      "race: %s of shared byte %zu and an access by thread %d (of warp %d) are not ordered by a barrier",
      what,
      byte,
      other.warp * warp_size + (other.lane == several_lanes ? 0 : other.lane),
      other.warp);
}

bool offset_of(const void* address, size_t& byte) {
  const size_t offset = size_t(static_cast<const char*>(address) - first_byte);
  if (static_cast<const char*>(address) < first_byte || offset >= bytes_watched) return false;
  byte = offset;
  return true;
}

void check_pending(const char* what, size_t byte) {
  if (pending[byte] != 0) {
    fail(
        {nullptr, 0},
        "pending: %s of shared byte %zu, to which thread %d copies asynchronously and has not waited for it",
        what,
        byte,
        pending[byte] - 1);
  }
}

void read_as(size_t first, size_t bytes, Place place) {
  const auto [warp, lane] = place;
  for (size_t byte = first; byte < first + bytes; ++byte) {
    check_pending("a read", byte);
    const Access& written = last_write[byte];
    if (written.time == 0)
      fail({nullptr, 0}, "uninitialized: a read of shared byte %zu, which nothing has written", byte);
    if (!happened_before(written, place)) report("a read", byte, written);
    Access& mine = last_read[byte * warps + warp];
    const bool joins_others = mine.time == time_of[warp] && mine.lane != lane;
    mine = {time_of[warp], int16_t(warp), int16_t(joins_others ? several_lanes : lane)};
  }
}

void check_write(const char* what, size_t byte, Place place) {
  check_pending(what, byte);
  if (!happened_before(last_write[byte], place)) report(what, byte, last_write[byte]);
  for (int warp = 0; warp < warps; ++warp) {
    const Access& seen = last_read[byte * warps + warp];
    if (!happened_before(seen, place)) report(what, byte, seen);
  }
}

void note_written(size_t byte, Place place) {
  last_write[byte] = {time_of[place.warp], int16_t(place.warp), int16_t(place.lane)};
}

}  // namespace

void start_block(const void* shared, size_t bytes, int warps_of_block) {
  first_byte = static_cast<const char*>(shared);
  bytes_watched = bytes;
  warps = warps_of_block;
  for (int w = 0; w < max_warps; ++w) {
    time_of[w] = 1;
    for (int32_t& time : known[w]) time = 0;
  }
  last_write.assign(bytes, Access{});
  last_read.assign(bytes * size_t(warps), Access{});
  pending.assign(bytes, 0);
}

void warp_synchronized(int warp) {
  ++time_of[warp];
}

void barrier_passed(const bool* took_part) {
  int32_t joined[max_warps] = {};
  for (int w = 0; w < warps; ++w) {
    if (took_part[w]) ++time_of[w];
  }
  for (int w = 0; w < warps; ++w) {
    if (!took_part[w]) continue;
    joined[w] = joined[w] > time_of[w] ? joined[w] : time_of[w];
    for (int u = 0; u < warps; ++u) joined[u] = joined[u] > known[w][u] ? joined[u] : known[w][u];
  }
  for (int w = 0; w < warps; ++w) {
    if (!took_part[w]) continue;
    for (int u = 0; u < warps; ++u) known[w][u] = joined[u];
  }
}

void read(const void* address, size_t bytes) {
  size_t first;
  if (offset_of(address, first)) read_as(first, bytes, Place::of_running_thread());
}

void warp_read(const void* address, size_t bytes) {
  size_t first;
  if (offset_of(address, first)) read_as(first, bytes, {Place::of_running_thread().warp, several_lanes});
}

void write(const void* address, size_t bytes) {
  size_t first;
  if (!offset_of(address, first)) return;
  const Place place = Place::of_running_thread();
  for (size_t byte = first; byte < first + bytes; ++byte) {
    check_write("a write", byte, place);
    note_written(byte, place);
  }
}

void copy_issued(const void* address, size_t bytes) {
  size_t first;
  if (!offset_of(address, first)) return;
  const Place place = Place::of_running_thread();
  for (size_t byte = first; byte < first + bytes; ++byte) {
    check_write("an asynchronous copy", byte, place);
    pending[byte] = int16_t(place.warp * warp_size + place.lane + 1);
  }
}

void copy_landed(const void* address, size_t bytes) {
  size_t first;
  if (!offset_of(address, first)) return;
  for (size_t byte = first; byte < first + bytes; ++byte) {
    pending[byte] = 0;
    note_written(byte, Place::of_running_thread());
  }
}

}  // namespace simt::race

// What -fsanitize=thread calls. Accesses outside shared memory are ignored.
extern "C" {

#define SIMT_ACCESS(size)                            \
  void __tsan_read##size(void* address) {            \
    simt::race::read(address, size);                 \
  }                                                  \
  void __tsan_write##size(void* address) {           \
    simt::race::write(address, size);                \
  }                                                  \
  void __tsan_unaligned_read##size(void* address) {  \
    simt::race::read(address, size);                 \
  }                                                  \
  void __tsan_unaligned_write##size(void* address) { \
    simt::race::write(address, size);                \
  }

SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)

void __tsan_read_range(void* address, unsigned long bytes) {
  simt::race::read(address, bytes);
}
void __tsan_write_range(void* address, unsigned long bytes) {
  simt::race::write(address, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

}  // extern "C"

#endif
