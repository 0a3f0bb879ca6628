// Selects and launches the LayerNorm kernels.

#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/layer_norm/layer_norm_kernel.cuh"

namespace vitfast {

constexpr int layer_norm_max_elements = 40;  // of a row, in the registers of one lane

// Calls f with the smallest sufficient number of packs per lane among `counts`, or with 0 if rows do not fit registers
// or are not divisible into packs.
template <typename T, int... counts, typename F>
void with_packs(int64_t channels, bool aligned, const F& f) {
  constexpr int size = Pack<T>::size;
  const int64_t packs = (channels / size + warp_size - 1) / warp_size;
  if (!aligned || channels % size != 0 || packs * size > layer_norm_max_elements) {
    return f(std::integral_constant<int, 0>{});
  }
  with_range<0, counts...>(packs, [&](auto, auto lane_packs) { f(lane_packs); });
}

template <typename... Pointers>
bool are_pack_aligned(const Pointers*... pointers) {
  return (is_pack_aligned(pointers) && ...);
}

// W: the type of the parameters, T or float.
template <typename T, typename W, int packs>
void launch_layer_norm_forward_packs(const LayerNormForward& a, int64_t blocks, Stream stream) {
  if constexpr (std::is_same_v<T, float>) {  // quantized models round float32 to nearest
    constexpr auto make = rule_rounding<Rounding::nearest_even>;
    using Rounder = RuleRounding<Rounding::nearest_even>;
    const LayerNormRoundings<Rounder> roundings{make(a.round_sum), make(a.round_operand), make(a.round_result)};
    launch(layer_norm_forward_kernel<T, W, packs, Rounder>, blocks, layer_norm_threads, 0, stream, a, roundings);
  } else {
    const LayerNormRoundings<NoRounding> roundings;
    launch(layer_norm_forward_kernel<T, W, packs, NoRounding>, blocks, layer_norm_threads, 0, stream, a, roundings);
  }
}

template <typename T>
void launch_layer_norm_forward(const LayerNormForward& a, Stream stream) {
  if (a.rows == 0) return;
  constexpr bool is_float = std::is_same_v<T, float>;
  bool in_registers = are_pack_aligned(a.x, a.residual, a.weight, a.bias, a.summed, a.y);
  for (const FloatRounding* rounding : {a.round_sum, a.round_operand, a.round_result}) {
    in_registers = in_registers && (rounding == nullptr || (is_float && rounding->rounding == Rounding::nearest_even));
  }
  const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
  const auto launch_packs = [&](auto packs) {
    if constexpr (packs == 0) {
      const LayerNormRoundings<AnyRounding> roundings{
          any_rounding(a.round_sum), any_rounding(a.round_operand), any_rounding(a.round_result)};
      launch(layer_norm_forward_any_kernel<T>, blocks, layer_norm_threads, 0, stream, a, roundings);
    } else if (is_float || a.parameter_type != Type::float32) {
      launch_layer_norm_forward_packs<T, T, packs>(a, blocks, stream);
    } else {
      launch_layer_norm_forward_packs<T, float, packs>(a, blocks, stream);
    }
  };
  // rows of 256, 512, 768 and 1280 elements: the kernel has registers to spare
  if constexpr (is_float) {
    with_packs<T, 2, 4, 6, 10>(a.channels, in_registers, launch_packs);
  } else {
    with_packs<T, 1, 2, 3, 5>(a.channels, in_registers, launch_packs);
  }
}

template <typename T>
void launch_layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  if (a.rows == 0) return;
  const bool aligned = are_pack_aligned(a.grad_y, a.grad_summed, a.x, a.weight, a.grad_x);
  const int64_t chunks = ceil_div(a.rows, a.rows_per_chunk);
  const auto launch_packs = [&](auto packs) {
    if constexpr (packs == 0) {
      const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
      launch(layer_norm_backward_any_kernel<T>, blocks, layer_norm_threads, 0, stream, a);
      if (a.partial_weight == nullptr && a.partial_bias == nullptr) return;
      const int64_t chunk_blocks = ceil_div(a.channels, layer_norm_threads);
      const auto kernel = layer_norm_backward_columns_kernel<T>;
      launch(kernel, chunks * chunk_blocks, layer_norm_threads, 0, stream, a, chunk_blocks);
    } else {
      const int scratch = shared_bytes<float>(layer_norm_warps * int(a.channels));
      const auto kernel = std::is_same_v<T, float> || a.parameter_type != Type::float32
                              ? layer_norm_backward_kernel<T, T, packs>
                              : layer_norm_backward_kernel<T, float, packs>;
      launch(kernel, chunks, layer_norm_threads, scratch, stream, a);
    }
  };
  // registers limit the resident blocks
  if constexpr (std::is_same_v<T, float>) {
    with_packs<T, 2, 3, 6, 8, 10>(a.channels, aligned, launch_packs);
  } else {
    with_packs<T, 1, 2, 3, 4, 5>(a.channels, aligned, launch_packs);
  }
}

}  // namespace vitfast
