// Packed GEMMs and the MLP on all threads: partition of the work, workspaces and parallel regions.

#pragma once

#include <atomic>
#include <thread>

#include "csrc/packed/packed_tensors.h"

namespace vitfast {

// glibc returns free memory to the system when there is more of it than twice the largest block freed so far. Then a
// forward pass takes a page fault for every 4 KiB of its results, 4 % of the time of ViT-S at batch 8. Freeing a block
// of nearly 32 MiB, the largest that counts, raises that limit; the block is not touched, so it takes no memory.
inline void keep_freed_memory() {
  [[maybe_unused]] static const int64_t freed = new_tensor({31 << 18}, ScalarType::Float).numel();
}

// Memory for `parts` concurrent tasks.
class Workspace {
 public:
  Workspace(int64_t bytes_per_part, int64_t parts)
      : bytes_per_part_((bytes_per_part + 63) / 64 * 64),
        tensor_(new_tensor({(bytes_per_part_ * parts + 64) / 4}, ScalarType::Float)) {
    keep_freed_memory();
  }
  char* part(int64_t index) const {
    const auto address = reinterpret_cast<uintptr_t>(tensor_.mutable_data_ptr());
    return reinterpret_cast<char*>((address + 63) / 64 * 64) + index * bytes_per_part_;
  }

 private:
  int64_t bytes_per_part_;
  Tensor tensor_;
};

// Runs f(part) for each part, one per thread.
template <typename F>
void for_each_part(int64_t parts, const F& f) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) f(part);
  });
}

// The part of [0, count) with this index.
inline Range part_of(int64_t count, int64_t index, int64_t parts) {
  return {index * count / parts, (index + 1) * count / parts};
}

// Runs f(range, memory) for each part of [0, count).
template <typename F>
void for_each_part(int64_t parts, int64_t count, const Workspace& workspace, const F& f) {
  for_each_part(parts, [&](int64_t part) { f(part_of(count, part, parts), workspace.part(part)); });
}

// Runs f(group, step, thread) for all steps of all groups, those of a group in order. A thread that is free takes the
// next group through its next step: first all groups through the first step. So faster threads do more.
template <typename F>
void for_each_step(int64_t groups, int64_t steps, int64_t threads, const F& f) {
  std::atomic<int64_t> next{0};
  std::vector<std::atomic<int64_t>> steps_done(groups);
  for_each_part(threads, [&](int64_t thread) {
    for (int64_t task = next++; task < groups * steps; task = next++) {
      const int64_t step = task / groups, group = task % groups;
      while (steps_done[group].load(std::memory_order_acquire) < step) std::this_thread::yield();
      f(group, step, thread);
      steps_done[group].store(step + 1, std::memory_order_release);
    }
  });
}

// The first row of each image, and the number of rows.
inline std::vector<int64_t> image_starts(int64_t images, int64_t tokens) {
  std::vector<int64_t> starts;
  for (int64_t image = 0; image <= images; ++image) starts.push_back(image * tokens);
  return starts;
}

// Successive sequences that a thread runs through a block at a time.
struct Group {
  Range sequences, rows;
  int64_t row_count() const { return rows.end - rows.begin; }
};

// As many sequences to a group as the thread's cache has room for, if that leaves a group for each thread.
inline std::vector<Group> group_sequences(const std::vector<int64_t>& starts, int64_t threads) {
  const int64_t sequences = int64_t(starts.size()) - 1;
  const int64_t most_rows = std::min(packed_kernels().rows_at_a_time, starts.back() / threads);
  std::vector<Group> groups;
  for (int64_t first = 0, last = 1; first < sequences; first = last++) {
    while (last < sequences && starts[last + 1] - starts[first] <= most_rows) ++last;
    groups.push_back({{first, last}, {starts[first], starts[last]}});
  }
  return groups;
}

// The rows of the largest group.
inline int64_t max_group_rows(const std::vector<Group>& groups) {
  int64_t most = 0;
  for (const Group& group : groups) most = std::max(most, group.row_count());
  return most;
}

// Whether for_each_step divides the groups among the threads: whether the last thread ends at most a tenth later than
// with an even division. Threads are assumed to be equally fast, and the time to be that of the rows.
inline bool divides(const std::vector<Group>& groups, size_t blocks, int64_t threads) {
  if (int64_t(groups.size()) < threads) return false;
  std::vector<int64_t> thread_end(threads, 0), group_end(groups.size(), 0);
  for (size_t block = 0; block < blocks; ++block) {
    for (size_t group = 0; group < groups.size(); ++group) {
      const auto thread = std::min_element(thread_end.begin(), thread_end.end());
      *thread = group_end[group] = std::max(*thread, group_end[group]) + groups[group].row_count();
    }
  }
  const int64_t last_end = *std::max_element(thread_end.begin(), thread_end.end());
  return last_end * threads * 10 <= groups.back().rows.end * int64_t(blocks) * 11;
}

// Number of threads worth their overhead for so many multiplications.
inline int64_t worthwhile_threads(int64_t multiplications) {
  constexpr int64_t per_thread = 200'000;
  const int64_t threads = int64_t(torch::stable::get_num_threads());
  return multiplications / per_thread < threads ? multiplications / per_thread + 1 : threads;
}

struct Grid {
  int64_t row_parts, panel_parts;
};

// The grid with the smallest cost of its largest part. A part multiplies its rows and panels, converts its rows and
// reads its panels; per input the latter two cost about as much as the multiplications of one column and of four rows.
inline Grid choose_grid(int64_t rows, int64_t panels, int64_t threads) {
  Grid best{1, 1};
  int64_t best_cost = INT64_MAX;
  for (int64_t panel_parts = 1; panel_parts <= threads && panel_parts <= panels; ++panel_parts) {
    const int64_t possible = threads / panel_parts;
    const int64_t row_parts = possible < rows ? possible : rows;
    const int64_t part_rows = ceil_div(rows, row_parts), part_panels = ceil_div(panels, panel_parts);
    const int64_t cost = (part_rows + 4) * part_panels * panel_columns + 8 * part_rows;
    if (cost < best_cost) {
      best_cost = cost;
      best = {row_parts, panel_parts};
    }
  }
  return best;
}

inline Grid linear_grid(int64_t rows, int64_t n, int64_t k) {
  return choose_grid(rows, panel_count(n), worthwhile_threads(rows * n * k));
}

// From this many rows per thread on, a thread computes several successive GEMMs for its rows, which stay in its cache,
// without synchronization. With fewer rows, each thread would read all weights for too little work.
constexpr int64_t min_chained_rows = 32;

inline void run_linear(const PackedLinear& a, int64_t rows) {
  const int64_t panels = panel_count(a.weight.n);
  if (rows == 0 || panels == 0) return;
  const Grid grid = linear_grid(rows, a.weight.n, a.weight.k);
  const PackedKernels& kernels = packed_kernels();
  const int64_t parts = grid.row_parts * grid.panel_parts;
  const Workspace workspace(kernels.linear_workspace(a, ceil_div(rows, grid.row_parts)), parts);
  for_each_part(parts, [&](int64_t part) {
    const Range part_rows = part_of(rows, part / grid.panel_parts, grid.row_parts);
    kernels.linear(a, part_rows, part_of(panels, part % grid.panel_parts, grid.panel_parts), workspace.part(part));
  });
}

// The MLP as two GEMMs with the hidden activations in memory, for few rows shared by many threads.
inline void run_mlp_by_panels(const PackedMlp& a, int64_t rows) {
  const bool is_narrow = a.fc1.precision == Precision::bfloat16;
  const Tensor hidden = new_tensor({rows, a.fc1.n}, is_narrow ? ScalarType::BFloat16 : ScalarType::Float);
  const Type type = is_narrow ? Type::bfloat16 : Type::float32;
  PackedLinear fc1{a.fc1, a.x, type, hidden.mutable_data_ptr(), a.norm, a.activation};
  std::optional<Tensor> gate;
  if (a.is_gated()) {
    gate = new_tensor({rows, a.fc1.n}, ScalarType::Float);
    run_linear({a.gate, a.x, Type::float32, gate->mutable_data_ptr(), a.norm, a.activation}, rows);
    fc1.activation = Activation::none;
    fc1.factor = static_cast<const float*>(gate->const_data_ptr());
  }
  run_linear(fc1, rows);
  const Rows hidden_rows{type, hidden.const_data_ptr(), a.fc1.n};
  run_linear({a.fc2, hidden_rows, Type::float32, a.out, Norm{}, Activation::none, a.scale, a.residual}, rows);
}

inline bool is_chained(int64_t rows, int64_t threads) {
  return threads == 1 || rows >= min_chained_rows * threads;
}

inline void run_mlp(const PackedMlp& a, int64_t rows) {
  if (rows == 0) return;
  const int64_t threads = worthwhile_threads(rows * a.fc1.n * (a.fc1.k + a.fc2.n));
  if (!is_chained(rows, threads)) return run_mlp_by_panels(a, rows);
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.mlp_workspace(a, ceil_div(rows, threads)), threads);
  for_each_part(threads, rows, workspace, [&](Range part, char* memory) { kernels.mlp(a, part, memory); });
}

}  // namespace vitfast
