// LayerNorm forward and backward, one row at a time; each row is read from memory once.

#pragma once

#include "csrc/cpu/vector.h"
#include "csrc/quantize/round_vector_cpu_kernel.h"

namespace vitfast::VITFAST_ISA {

// Computes the rounded input of the normalization in `row`, padded with zeros, and returns its sum.
template <typename T, typename C>
Vector<C> load_rounded_row(const LayerNormForward& a, const T* x, const T* residual, T* summed, C* row) {
  for_each_vector<C>(a.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    Vector<C> v = load_up_to<C>(x + i, count);
    if (residual != nullptr) v += load_up_to<C>(residual + i, count);
    store(row + i, v);
  });
  if (residual != nullptr) {
    if (a.round_sum != nullptr) round_row(*a.round_sum, row, a.channels);
    for_each_vector<C>(a.channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      store_up_to<C>(summed + i, load(row + i), count);
      if constexpr (sizeof(T) < sizeof(C)) store(row + i, load_up_to<C>(summed + i, count));
    });
  }
  if (a.round_operand != nullptr) round_row(*a.round_operand, row, a.channels);
  LaneSums<C> sum;
  for_each_vector<C>(a.channels, [&](int64_t i, int64_t) __attribute__((always_inline)) { sum += load(row + i); });
  return sum.total();
}

template <typename T, typename C>
void layer_norm_forward_rows(const LayerNormForward& a, int64_t begin, int64_t end) {
  const int64_t channels = a.channels;
  const Scratch<C> scratch(channels + width<C>);  // the row in the computing type, cached between the passes
  C* row = scratch.data;
  const auto* weight = static_cast<const C*>(a.weight);
  const auto* bias = static_cast<const C*>(a.bias);
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(a.x) + r * channels;
    const T* residual = a.residual == nullptr ? nullptr : static_cast<const T*>(a.residual) + r * channels;
    T* summed = a.residual == nullptr ? nullptr : static_cast<T*>(a.summed) + r * channels;
    const T* added = a.added == nullptr ? nullptr : static_cast<const T*>(a.added) + r * channels;
    T* y = static_cast<T*>(a.y) + r * channels;

    Vector<C> sum;
    if (a.round_sum != nullptr || a.round_operand != nullptr) {
      sum = load_rounded_row<T, C>(a, x, residual, summed, row);
    } else {
      LaneSums<C> lanes;
      for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        Vector<C> v = load_up_to<C>(x + i, count);
        if (residual != nullptr) {
          v += load_up_to<C>(residual + i, count);
          store_up_to<C>(summed + i, v, count);
          if constexpr (sizeof(T) < sizeof(C)) v = load_up_to<C>(summed + i, count);  // normalize the stored value
        }
        store(row + i, v);
        lanes += v;
      });
      sum = lanes.total();
    }
    const C mean = sum_across<C>(sum) / C(channels);

    Vector<C> squares{};
    for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      Vector<C> centered = load(row + i) - mean;
      if (count < width<C>) {
        for (int64_t j = count; j < width<C>; ++j) centered[j] = 0;
      }
      squares += centered * centered;
    });
    const C rstd = C(1) / C(::sqrt(double(sum_across<C>(squares) / C(channels)) + a.eps));

    for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      Vector<C> v = (load(row + i) - mean) * rstd;
      if (weight != nullptr) v *= load_up_to<C>(weight + i, count);
      if (bias != nullptr) v += load_up_to<C>(bias + i, count);
      if (added != nullptr) v += load_up_to<C>(added + i, count);
      if (a.round_result == nullptr) {
        store_up_to<C>(y + i, v, count);
      } else {
        store(row + i, v);
      }
    });
    if (a.round_result != nullptr) {
      round_row(*a.round_result, row, channels);
      for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        store_up_to<C>(y + i, load(row + i), count);
      });
    }
    if (a.mean != nullptr) {
      static_cast<C*>(a.mean)[r] = mean;
      static_cast<C*>(a.rstd)[r] = rstd;
    }
  }
}

// With g = grad_y * weight and x̂ = (x - mean) * rstd: grad_x = rstd * (g - average(g) - x̂ * average(g x̂)).
template <typename T, typename C>
void layer_norm_backward_chunks(const LayerNormBackward& a, int64_t begin, int64_t end) {
  const int64_t channels = a.channels;
  const auto* weight = static_cast<const C*>(a.weight);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    C* sum_weight = a.partial_weight == nullptr ? nullptr : static_cast<C*>(a.partial_weight) + chunk * channels;
    C* sum_bias = a.partial_bias == nullptr ? nullptr : static_cast<C*>(a.partial_bias) + chunk * channels;
    const int64_t first = chunk * a.rows_per_chunk;
    const int64_t last = first + a.rows_per_chunk < a.rows ? first + a.rows_per_chunk : a.rows;
    for (int64_t r = first; r < last; ++r) {
      const T* grad_y = static_cast<const T*>(a.grad_y) + r * channels;
      const T* grad_summed = a.grad_summed == nullptr ? nullptr : static_cast<const T*>(a.grad_summed) + r * channels;
      const T* x = static_cast<const T*>(a.x) + r * channels;
      T* grad_x = static_cast<T*>(a.grad_x) + r * channels;
      const C mean = static_cast<const C*>(a.mean)[r];
      const C rstd = static_cast<const C*>(a.rstd)[r];

      Vector<C> sum_g{}, sum_gx{};
      for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        const Vector<C> grad = load_up_to<C>(grad_y + i, count);
        const Vector<C> normalized = (load_up_to<C>(x + i, count) - mean) * rstd;
        if (sum_weight != nullptr) {
          store_up_to<C>(sum_weight + i, load_up_to<C>(sum_weight + i, count) + grad * normalized, count);
        }
        if (sum_bias != nullptr) store_up_to<C>(sum_bias + i, load_up_to<C>(sum_bias + i, count) + grad, count);
        const Vector<C> g = weight == nullptr ? grad : grad * load_up_to<C>(weight + i, count);
        sum_g += g;  // grad is zero past the end of the row, and so are the terms of both sums
        sum_gx += g * normalized;
      });
      const C average_g = sum_across<C>(sum_g) / C(channels);
      const C average_gx = sum_across<C>(sum_gx) / C(channels);

      for_each_vector<C>(channels, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        const Vector<C> grad = load_up_to<C>(grad_y + i, count);
        const Vector<C> normalized = (load_up_to<C>(x + i, count) - mean) * rstd;
        const Vector<C> g = weight == nullptr ? grad : grad * load_up_to<C>(weight + i, count);
        Vector<C> result = (g - average_g - normalized * average_gx) * rstd;
        if (grad_summed != nullptr) result += load_up_to<C>(grad_summed + i, count);
        store_up_to<C>(grad_x + i, result, count);
      });
    }
  }
}

void layer_norm_forward(const LayerNormForward& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    layer_norm_forward_rows<decltype(stored), decltype(computed)>(a, begin, end);
  });
}

void layer_norm_backward(const LayerNormBackward& a, int64_t begin, int64_t end) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    layer_norm_backward_chunks<decltype(stored), decltype(computed)>(a, begin, end);
  });
}

}  // namespace vitfast::VITFAST_ISA
