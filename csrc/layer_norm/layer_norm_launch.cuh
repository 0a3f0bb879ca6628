// Selects and launches the LayerNorm kernels.

#pragma once

#include "csrc/cuda/launch.cuh"
#include "csrc/layer_norm/layer_norm_kernel.cuh"

namespace vitfast {

// Calls f with the smallest sufficient number of packs per lane among `counts`, which end with that of
// layer_norm_max_channels.
template <typename T, int... counts, typename F>
void with_packs(int64_t channels, const F& f) {
  with_range<0, counts...>(ceil_div(channels, Pack<T>::size * warp_size), [&](auto, auto packs) { f(packs); });
}

template <typename T, typename U>
void launch_layer_norm_forward(const LayerNormForward& a, Stream stream) {
  if (a.rows == 0) return;
  constexpr bool is_float = std::is_same_v<U, float>;
  const int64_t blocks = blocks_for(a.rows * warp_size, layer_norm_threads);
  const auto launch_packs = [&](auto packs) {
    const auto launch_rounding = [&](const auto& roundings) {
      using Rounder = decltype(roundings.sum);
      const auto kernel = is_float || a.parameter_type != Type::float32
                              ? layer_norm_forward_kernel<T, U, T, packs, Rounder>
                              : layer_norm_forward_kernel<T, U, float, packs, Rounder>;
      launch(kernel, blocks, layer_norm_threads, 0, stream, a, roundings);
    };
    if constexpr (is_float) {  // quantized models round float32 to nearest
      constexpr auto make = rule_rounding<Rounding::nearest_even>;
      using Roundings = LayerNormRoundings<RuleRounding<Rounding::nearest_even>>;
      launch_rounding(Roundings{make(a.round_sum), make(a.round_operand), make(a.round_result)});
    } else {
      launch_rounding(LayerNormRoundings<NoRounding>{});
    }
  };
  // rows of 256, 512, 768 and 1280 elements: the kernel has registers to spare
  if constexpr (is_float) {
    with_packs<U, 2, 4, 6, 10>(a.channels, launch_packs);
  } else {
    with_packs<U, 1, 2, 3, 5>(a.channels, launch_packs);
  }
}

template <typename T, typename U>
void launch_layer_norm_backward(const LayerNormBackward& a, Stream stream) {
  if (a.rows == 0) return;
  const int64_t chunks = ceil_div(a.rows, a.rows_per_chunk);
  const auto launch_packs = [&](auto packs) {
    const int scratch = shared_bytes<float>(layer_norm_warps * int(a.channels));
    const auto kernel = std::is_same_v<T, float> || a.parameter_type != Type::float32
                            ? layer_norm_backward_kernel<T, U, T, packs>
                            : layer_norm_backward_kernel<T, U, float, packs>;
    launch(kernel, chunks, layer_norm_threads, scratch, stream, a);
  };
  // registers limit the resident blocks
  if constexpr (std::is_same_v<U, float>) {
    with_packs<U, 2, 3, 6, 8, 10>(a.channels, launch_packs);
  } else {
    with_packs<U, 1, 2, 3, 4, 5>(a.channels, launch_packs);
  }
}

}  // namespace vitfast
