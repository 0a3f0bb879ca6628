// From the arguments of the MLP to the instance of its kernel.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/mlp/mlp_kernel.cuh"

namespace vitfast {

constexpr int mlp_max_channels = 192;
// what vitfast/ops/mlp.py asks a GPU for
static_assert(MlpShape<Half, mlp_max_channels, 8>::shared_bytes_asked == 144 * 1024);

template <typename T, int width, int warps>
void launch_mlp_instance(const MlpForward& a, Stream stream) {
  using Shape = MlpShape<T, width, warps>;
  const int64_t blocks = (a.rows + Shape::rows - 1) / Shape::rows;
  launch(mlp_kernel<T, width, warps>, blocks, Shape::threads, Shape::shared_bytes_asked, stream, a);
}

// Every block reads all weights: large tiles, unless they would leave half of a large GPU's multiprocessors idle.
template <typename T, int width>
void launch_mlp_width(const MlpForward& a, Stream stream) {
  constexpr int64_t few_blocks = 66;
  if (a.rows <= few_blocks * MlpShape<T, width, 8>::rows) return launch_mlp_instance<T, width, 4>(a, stream);
  launch_mlp_instance<T, width, 8>(a, stream);
}

// T: Half or BFloat16.
template <typename T>
void launch_mlp(const MlpForward& a, Stream stream) {
  if (a.rows == 0) return;
  if (a.channels > mlp_max_channels || a.channels % 8 != 0 || a.hidden % 8 != 0 || a.channels * a.hidden == 0) {
    throw std::runtime_error("mlp: the CUDA kernel takes up to 192 channels, and channels and hidden units by 8");
  }
  if (a.channels <= 64) return launch_mlp_width<T, 64>(a, stream);
  if (a.channels <= 128) return launch_mlp_width<T, 128>(a, stream);
  launch_mlp_width<T, 192>(a, stream);
}

}  // namespace vitfast
