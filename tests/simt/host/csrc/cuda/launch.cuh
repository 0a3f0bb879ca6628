#pragma once

#include <cstdint>

#include "tests/simt/runtime/simt.h"

namespace vitfast {

struct Stream {};

template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...),
    int64_t blocks,
    int threads_per_block,
    int shared_bytes,
    Stream,
    const Arguments&... arguments) {
  simt::run_grid(blocks, threads_per_block, size_t(shared_bytes), [&] { kernel(arguments...); });
}

// Three multiprocessors: few enough that grid-stride loops go round.
inline int64_t blocks_for(int64_t items, int threads_per_block) {
  const int64_t needed = (items + threads_per_block - 1) / threads_per_block;
  return needed < 3 ? needed : 3;
}

}  // namespace vitfast
