// From the arguments of LayerNorm to the instance of its kernel.

#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/layer_norm/layer_norm_kernel.cuh"

namespace vitfast {

constexpr int layer_norm_max_elements = 40;  // of a row, in the registers of a lane

// Calls f with the number of packs that a lane needs for a row, or with 0 where the rows do not fit registers or packs.
template <typename T, typename F>
void with_packs(int64_t channels, bool aligned, const F& f) {
  constexpr int size = Pack<T>::size;
  const int64_t packs = (channels / size + warp_size - 1) / warp_size;
  if (!aligned || channels % size != 0 || packs * size > layer_norm_max_elements) {
    return f(std::integral_constant<int, 0>{});
  }
  if (packs <= 1) return f(std::integral_constant<int, 1>{});
  if (packs <= 2) return f(std::integral_constant<int, 2>{});
  if (packs <= 3) return f(std::integral_constant<int, 3>{});
  if (packs <= 4) return f(std::integral_constant<int, 4>{});
  if constexpr (size == 8) {
    return f(std::integral_constant<int, 5>{});
  } else {
    if (packs <= 6) return f(std::integral_constant<int, 6>{});
    if (packs <= 8) return f(std::integral_constant<int, 8>{});
    return f(std::integral_constant<int, 10>{});
  }
}

template <typename... Pointers>
bool are_pack_aligned(const Pointers*... pointers) {
  return (is_pack_aligned(pointers) && ...);
}

// W: the type of the parameters, T or float.
template <typename T, typename W>
void launch_layer_norm_forward(const LayerNormForward& a, Stream stream) {
  if (a.rows == 0) return;
  const bool aligned = are_pack_aligned(a.x, a.residual, a.weight, a.bias, a.summed, a.y);
  const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
  with_packs<T>(a.channels, aligned, [&](auto packs) {
    if constexpr (packs == 0) {
      launch(layer_norm_forward_any_kernel<T, W>, blocks, layer_norm_threads, 0, stream, a);
    } else {
      launch(layer_norm_forward_kernel<T, W, packs>, blocks, layer_norm_threads, 0, stream, a);
    }
  });
}

template <typename T, typename W>
void launch_layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  if (a.rows == 0) return;
  const bool aligned = are_pack_aligned(a.grad_y, a.grad_summed, a.x, a.weight, a.grad_x);
  const int64_t chunks = count_chunks(a.rows, a.rows_per_chunk);
  with_packs<T>(a.channels, aligned, [&](auto packs) {
    if constexpr (packs == 0) {
      const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
      launch(layer_norm_backward_any_kernel<T, W>, blocks, layer_norm_threads, 0, stream, a);
      if (a.partial_weight == nullptr && a.partial_bias == nullptr) return;
      const int64_t blocks_per_chunk = (a.channels + layer_norm_threads - 1) / layer_norm_threads;
      launch(
          layer_norm_backward_columns_kernel<T>,
          chunks * blocks_per_chunk,
          layer_norm_threads,
          0,
          stream,
          a,
          blocks_per_chunk);
    } else {
      const int scratch = shared_bytes<float>(layer_norm_warps * int(a.channels));
      launch(layer_norm_backward_kernel<T, W, packs>, chunks, layer_norm_threads, scratch, stream, a);
    }
  });
}

}  // namespace vitfast
