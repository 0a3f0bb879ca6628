// Selects and launches the LayerNorm kernels.

#pragma once

#include <type_traits>

#include "csrc/cuda/launch.cuh"
#include "csrc/layer_norm/layer_norm_kernel.cuh"

namespace vitfast {

constexpr int layer_norm_max_elements = 40;  // of a row, in the registers of one lane

// Calls f with the number of packs per lane, or with 0 if rows do not fit registers or are not divisible into packs.
template <typename T, typename F>
void with_packs(int64_t channels, bool aligned, const F& f) {
  constexpr int size = Pack<T>::size;
  const int64_t packs = (channels / size + warp_size - 1) / warp_size;
  if (!aligned || channels % size != 0 || packs * size > layer_norm_max_elements) {
    return f(std::integral_constant<int, 0>{});
  }
  if constexpr (size == 8) {
    with_range<0, 1, 2, 3, 4, 5>(packs, [&](auto, auto lane_packs) { f(lane_packs); });
  } else {
    with_range<0, 1, 2, 3, 4, 6, 8, 10>(packs, [&](auto, auto lane_packs) { f(lane_packs); });
  }
}

template <typename... Pointers>
bool are_pack_aligned(const Pointers*... pointers) {
  return (is_pack_aligned(pointers) && ...);
}

// Calls f with the roundings. Quantized models round float32 to nearest; only for these do instances exist that keep
// rows in registers.
template <typename T, typename F>
void with_roundings(const LayerNormForward& a, const F& f) {
  bool is_there = false, is_nearest_even = std::is_same_v<T, float>;
  for (const FloatRounding* rounding : {a.round_sum, a.round_operand, a.round_result}) {
    is_there = is_there || rounding != nullptr;
    is_nearest_even = is_nearest_even && (rounding == nullptr || rounding->rounding == Rounding::nearest_even);
  }
  if (!is_there) return f(LayerNormRoundings<NoRounding>{});
  const auto all = [&](auto make) -> LayerNormRoundings<decltype(make(nullptr))> {
    return {make(a.round_sum), make(a.round_operand), make(a.round_result)};
  };
  if constexpr (std::is_same_v<T, float>) {
    if (is_nearest_even) return f(all(rule_rounding<Rounding::nearest_even>));
  }
  f(all(any_rounding));
}

// W: the type of the parameters, T or float.
template <typename T, typename W, typename Rounder>
void launch_layer_norm_forward_rounded(
    const LayerNormForward& a, const LayerNormRoundings<Rounder>& roundings, Stream stream) {
  const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
  const auto launch_any = [&] {
    launch(layer_norm_forward_any_kernel<T, W, Rounder>, blocks, layer_norm_threads, 0, stream, a, roundings);
  };
  if constexpr (std::is_same_v<Rounder, AnyRounding>) {
    launch_any();
  } else {
    const bool aligned = are_pack_aligned(a.x, a.residual, a.weight, a.bias, a.summed, a.y);
    with_packs<T>(a.channels, aligned, [&](auto packs) {
      if constexpr (packs == 0) {
        launch_any();
      } else {
        const auto kernel = layer_norm_forward_kernel<T, W, packs, Rounder>;
        launch(kernel, blocks, layer_norm_threads, 0, stream, a, roundings);
      }
    });
  }
}

template <typename T, typename W>
void launch_layer_norm_forward(const LayerNormForward& a, Stream stream) {
  if (a.rows == 0) return;
  with_roundings<T>(a, [&](const auto& roundings) { launch_layer_norm_forward_rounded<T, W>(a, roundings, stream); });
}

template <typename T, typename W>
void launch_layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  if (a.rows == 0) return;
  const bool aligned = are_pack_aligned(a.grad_y, a.grad_summed, a.x, a.weight, a.grad_x);
  const int64_t chunks = ceil_div(a.rows, a.rows_per_chunk);
  with_packs<T>(a.channels, aligned, [&](auto packs) {
    if constexpr (packs == 0) {
      const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
      launch(layer_norm_backward_any_kernel<T, W>, blocks, layer_norm_threads, 0, stream, a);
      if (a.partial_weight == nullptr && a.partial_bias == nullptr) return;
      const int64_t chunk_blocks = ceil_div(a.channels, layer_norm_threads);
      const auto kernel = layer_norm_backward_columns_kernel<T>;
      launch(kernel, chunks * chunk_blocks, layer_norm_threads, 0, stream, a, chunk_blocks);
    } else {
      const int scratch = shared_bytes<float>(layer_norm_warps * int(a.channels));
      launch(layer_norm_backward_kernel<T, W, packs>, chunks, layer_norm_threads, scratch, stream, a);
    }
  });
}

}  // namespace vitfast
