// Integer division for grids, tiles and chunks of rows; the choice of a kernel's instance.

#pragma once

#include <cstdint>
#include <type_traits>

namespace vitfast {

constexpr int64_t ceil_div(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Rows per chunk for reductions over rows. Chunks, and with them the order of the sums, depend only on the shape:
// results do not depend on the number of threads.
constexpr int64_t split_rows(int64_t rows, int64_t max_chunks, int64_t min_rows_per_chunk) {
  const int64_t even_split = ceil_div(rows, max_chunks);
  return even_split > min_rows_per_chunk ? even_split : min_rows_per_chunk;
}

// Calls f(lower, upper), as constants, with the neighbors among ascending bounds for which lower < value <= upper; the
// last bound also covers larger values.
template <int lower, int upper, int... rest, typename F>
void with_range(int64_t value, const F& f) {
  if constexpr (sizeof...(rest) > 0) {
    if (value > upper) return with_range<upper, rest...>(value, f);
  }
  f(std::integral_constant<int, lower>{}, std::integral_constant<int, upper>{});
}

}  // namespace vitfast
