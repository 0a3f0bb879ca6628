// How the result of a product is split among threads.

#pragma once

#include <cstdint>

#include "csrc/packed/packed.h"

namespace vitfast {

struct Grid {
  int64_t row_parts, panel_parts;
  int64_t parts() const { return row_parts * panel_parts; }

  Rectangle part(int64_t index, int64_t rows, int64_t panels) const {
    const int64_t r = index / panel_parts, p = index % panel_parts;
    return {r * rows / row_parts, (r + 1) * rows / row_parts, p * panels / panel_parts, (p + 1) * panels / panel_parts};
  }
};

// The split with the cheapest largest part. A part multiplies its rows and panels, makes its rows' operand and reads
// its panels; per input these cost about as much as the multiplications of one column and of four rows.
inline Grid choose_grid(int64_t rows, int64_t panels, int64_t threads) {
  Grid best{1, 1};
  int64_t best_cost = INT64_MAX;
  for (int64_t panel_parts = 1; panel_parts <= threads && panel_parts <= panels; ++panel_parts) {
    const int64_t possible = threads / panel_parts;
    const int64_t row_parts = possible < rows ? possible : rows;
    const int64_t part_rows = divide_up(rows, row_parts), part_panels = divide_up(panels, panel_parts);
    const int64_t cost = (part_rows + 4) * part_panels * panel_columns + 8 * part_rows;
    if (cost < best_cost) {
      best_cost = cost;
      best = {row_parts, panel_parts};
    }
  }
  return best;
}

// Where every thread has this many rows, it takes them through several products in a row: no other thread waits for it,
// and its rows stay in its cache. With fewer, each would read all the weights for too little work.
constexpr int64_t min_chained_rows = 32;

}  // namespace vitfast
