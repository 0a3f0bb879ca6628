// LayerNorm on the device: one warp per row. Statistics are computed in float from the stored row, the variance by a
// second pass about the mean.
//
// Rows are kept in registers between the passes, in packs of 16 bytes: pack p of lane l is pack 32 p + l of the row.
//
// Fused roundings (LayerNormRoundings) apply to the sum before it is stored, to the input of the normalization, and to
// the result before it is stored. The statistics are those of the rounded row.

#pragma once

#include <cmath>
#include <type_traits>

#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "csrc/layer_norm/layer_norm.h"
#include "csrc/quantize/device_rounding.cuh"

namespace vitfast {

constexpr int layer_norm_warps = 4;
constexpr int layer_norm_threads = layer_norm_warps * warp_size;

// Index in the row of the first element of a lane's pack; may be past the end. Kernels pass an opaque lane, so that
// indices are recomputed in each pass: keeping them costs registers, with three packs a spill (sm_80).
template <typename T>
__device__ __forceinline__ int pack_start(int pack, int lane) {
  return (pack * warp_size + lane) * Pack<T>::size;
}

constexpr float no_shift = -0.0f;  // adding it preserves the sign of a zero

// Loads a parameter, or fills with `missing` if it is null.
template <int count, typename W>
__device__ __forceinline__ void load_parameters(float (&values)[count], const W* parameter, int first, float missing) {
  if (parameter != nullptr) return load_floats(values, parameter + first);
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = missing;
}

// Rounder: a type of csrc/quantize/device_rounding.cuh.
template <typename Rounder>
struct LayerNormRoundings {
  Rounder sum, operand, result;
};

template <typename Rounder, int count>
__device__ __forceinline__ void round_stored(const Rounder& rounding, float (&values)[count]) {
  if (rounding.is_there) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = rounding.of_stored(values[i]);
  }
}

template <typename Rounder, int count>
__device__ __forceinline__ void round_computed(const Rounder& rounding, float (&values)[count]) {
  if (rounding.is_there) {
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = rounding.of_computed(values[i]);
  }
}

// T: the type of the residual stream; U: that of the branch, T or narrower than float. The type W of the parameters is
// T or float: a template parameter, because choosing it at run time costs registers.
template <typename T, typename U, typename W, int packs, typename Rounder>
__global__ void __launch_bounds__(layer_norm_threads)
    layer_norm_forward_kernel(const LayerNormForward a, const LayerNormRoundings<Rounder> roundings) {
  constexpr int size = Pack<U>::size;
  const int channels = int(a.channels), lane = opaque(lane_in_warp());
  const W* weight = static_cast<const W*>(a.weight);
  const W* bias = static_cast<const W*>(a.bias);
  const int64_t warps = int64_t(gridDim.x) * layer_norm_warps;
  for (int64_t row = int64_t(blockIdx.x) * layer_norm_warps + warp_in_block(); row < a.rows; row += warps) {
    float values[packs][size];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int start = pack_start<U>(p, lane);
      if (start >= channels) continue;
      const int64_t place = row * channels + start;
      if (std::is_same_v<T, U> || a.residual != nullptr) {
        load_floats(values[p], static_cast<const U*>(a.x) + place);
      } else {
        load_floats(values[p], static_cast<const T*>(a.x) + place);
      }
      if (a.residual != nullptr) {
        float residual[size];
        load_floats(residual, static_cast<const T*>(a.residual) + place);
#pragma unroll
        for (int i = 0; i < size; ++i) values[p][i] += residual[i];
        round_computed(roundings.sum, values[p]);
        store_rounded(static_cast<T*>(a.summed) + place, values[p]);
      }
      round_stored(roundings.operand, values[p]);
#pragma unroll
      for (int i = 0; i < size; ++i) sum += values[p][i];
    }
    const float mean = sum_over<warp_size>(sum) / float(channels);

    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      if (pack_start<U>(p, lane) >= channels) continue;
#pragma unroll
      for (int i = 0; i < size; ++i) {
        values[p][i] -= mean;
        squares += values[p][i] * values[p][i];
      }
    }
    const float rstd = 1.0f / sqrtf(sum_over<warp_size>(squares) / float(channels) + float(a.eps));

#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int start = pack_start<U>(p, lane);
      if (start >= channels) continue;
      float factors[size], shifts[size];
      load_parameters(factors, weight, start, 1.0f);
      load_parameters(shifts, bias, start, no_shift);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        values[p][i] = fused_multiply_add(values[p][i] * rstd, factors[i], shifts[i]);
      }
      round_computed(roundings.result, values[p]);
      store_rounded(static_cast<U*>(a.y) + row * channels + start, values[p]);
    }
    if (lane == 0) {
      static_cast<float*>(a.mean)[row] = mean;
      static_cast<float*>(a.rstd)[row] = rstd;
    }
  }
}

// Rows of a chunk.
struct RowRange {
  int64_t begin, end;
};
__device__ __forceinline__ RowRange chunk_rows(const LayerNormBackward& a, int64_t chunk) {
  const int64_t begin = chunk * a.rows_per_chunk, end = begin + a.rows_per_chunk;
  return {begin, end < a.rows ? end : a.rows};
}

// Adds the sums [packs][size] of the block's warps in a fixed order and writes the block's row of `partial`.
template <typename T, int packs>
__device__ __forceinline__ void write_partial(
    float* partial, const float (&sums)[packs][Pack<T>::size], float* scratch, int channels) {
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    const int start = pack_start<T>(p, lane_in_warp());
    if (start >= channels) continue;
    store_floats(scratch + warp_in_block() * channels + start, sums[p]);
  }
  sync_threads();
  for (int c = int(threadIdx.x); c < channels; c += layer_norm_threads) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < layer_norm_warps; ++warp) sum += scratch[warp * channels + c];
    partial[int64_t(blockIdx.x) * channels + c] = sum;
  }
  sync_threads();  // the scratch can be reused
}

// One block per chunk of rows. Types as in the forward.
template <typename T, typename U, typename W, int packs>
__global__ void __launch_bounds__(layer_norm_threads) layer_norm_backward_kernel(const LayerNormBackward a) {
  constexpr int size = Pack<U>::size;
  const int channels = int(a.channels), lane = lane_in_warp();
  const RowRange rows = chunk_rows(a, blockIdx.x);
  SharedMemory shared;
  float* scratch = shared.take<float>(layer_norm_warps * channels);
  float weight_sums[packs][size] = {}, bias_sums[packs][size] = {};
  // all loads of a row in flight at once, where registers allow three blocks or more
  constexpr bool loads_first = sizeof(T) == 2 && packs <= 3;
  for (int64_t row = rows.begin + warp_in_block(); row < rows.end; row += layer_norm_warps) {
    const float mean = static_cast<const float*>(a.mean)[row], rstd = static_cast<const float*>(a.rstd)[row];
    Packs<T, size> x[packs], others[packs];
    Packs<U, size> grad_y[packs];
    const auto load = [&](int p, int start) {
      x[p] = load_packs<size>(static_cast<const T*>(a.x) + row * channels + start);
      grad_y[p] = load_packs<size>(static_cast<const U*>(a.grad_y) + row * channels + start);
    };
    const auto load_others = [&](int p, int start) {
      if (a.grad_summed != nullptr)
        others[p] = load_packs<size>(static_cast<const T*>(a.grad_summed) + row * channels + start);
    };
    if constexpr (loads_first) {
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        const int start = pack_start<U>(p, opaque(lane));
        if (start >= channels) continue;
        load(p, start);
        load_others(p, start);
      }
    }
    float normalized[packs][size], gradient[packs][size];
    float gradients = 0.0f, products = 0.0f;
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int start = pack_start<U>(p, opaque(lane));
      if (start >= channels) continue;
      if constexpr (!loads_first) load(p, start);
      float factors[size];
      if (a.weight != nullptr) load_floats(factors, static_cast<const W*>(a.weight) + start);
#pragma unroll
      for (int i = 0; i < size; ++i) {
        normalized[p][i] = (x[p][i] - mean) * rstd;
        gradient[p][i] = grad_y[p][i];
        weight_sums[p][i] += gradient[p][i] * normalized[p][i];
        bias_sums[p][i] += gradient[p][i];
        if (a.weight != nullptr) gradient[p][i] *= factors[i];
        gradients += gradient[p][i];
        products += gradient[p][i] * normalized[p][i];
      }
    }
    const float average = sum_over<warp_size>(gradients) / float(channels);
    const float slope = sum_over<warp_size>(products) / float(channels);
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int start = pack_start<U>(p, opaque(lane));
      if (start >= channels) continue;
#pragma unroll
      for (int i = 0; i < size; ++i) gradient[p][i] = rstd * (gradient[p][i] - average - normalized[p][i] * slope);
      if constexpr (!loads_first) load_others(p, start);
      if (a.grad_summed != nullptr) {
#pragma unroll
        for (int i = 0; i < size; ++i) gradient[p][i] += others[p][i];
      }
      store_rounded(static_cast<T*>(a.grad_x) + row * channels + start, gradient[p]);
    }
  }
  if (a.partial_weight != nullptr) {
    write_partial<U, packs>(static_cast<float*>(a.partial_weight), weight_sums, scratch, channels);
  }
  if (a.partial_bias != nullptr) {
    write_partial<U, packs>(static_cast<float*>(a.partial_bias), bias_sums, scratch, channels);
  }
}

}  // namespace vitfast
