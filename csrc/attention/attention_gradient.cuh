// Elementwise part of the attention backward. With P = exp(logits - lse) and D_i = Σ_d grad_out_id out_id:
//
//     grad_v = Pᵀ grad_out     dS = P ∘ (grad_out vᵀ - D) + grad_logits     grad_bias = dS
//     grad_q = scale dS k      grad_k = scale dSᵀ q

#pragma once

#include "csrc/attention/attention_gemm.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// lse, in units of ln 2, and D of a query. Past the last token the lse is infinite, which makes P zero, and D is zero.
struct RowStatistics {
  float lse, dot;
};

// Computed by a pair of adjacent threads; both get the result.
template <typename T>
__device__ __forceinline__ RowStatistics
row_statistics(const AttentionBackward& a, unsigned head, int row, int thread) {
  float lse = infinity, dot = 0.0f;
  if (row < a.tokens) {
    const T* out = head_rows<const T>(a, a.out, head, row);
    const T* grad_out = head_rows<const T>(a, a.grad_out, head, row);
    for (int chunk = thread % 2; chunk * Pack<T>::size < int(a.head_dim); chunk += 2) {
      const Pack<T> o = load_pack(out + chunk * Pack<T>::size);
      const Pack<T> g = load_pack(grad_out + chunk * Pack<T>::size);
#pragma unroll
      for (int i = 0; i < Pack<T>::size; ++i) dot += to_float(o.element[i]) * to_float(g.element[i]);
    }
    lse = static_cast<const float*>(a.lse)[int64_t(head) * a.tokens + row] * log2_of_e;
  }
  return {lse, dot + shuffle_xor(dot, 1)};
}

// An element of P and of dS.
struct Differentiated {
  float weight, grad;
};

// The [N, N] matrices of one head.
template <typename T>
class GradientSquares {
 public:
  __device__ __forceinline__ GradientSquares(const AttentionBackward& a, unsigned head) : a_(a) {
    const unsigned image = head / unsigned(a.heads);
    const int64_t square = a.tokens * a.tokens;
    bias_ = static_cast<const T*>(a.bias) + image * a.bias_batch_stride + (head - image * a.heads) * square;
    grad_bias_ = static_cast<T*>(a.grad_bias) + head * square;
    grad_logits_ = static_cast<const T*>(a.grad_logits) + head * square;
  }

  // `product` = q k and `slope` = grad_out v of the element; `lse` in units of ln 2 and `dot` = D of the query's row.
  // Past the last token the lse is infinite, so that P is zero.
  __device__ __forceinline__ Differentiated
  differentiate(int query, int key, float product, float slope, float lse, float dot) const {
    const int tokens = int(a_.tokens);
    const bool inside = key < tokens && query < tokens;
    const int64_t place = int64_t(query) * tokens + key;
    float logit = product * (float(a_.scale) * log2_of_e);
    if (a_.bias != nullptr && inside) logit += to_float(bias_[place]) * log2_of_e;
    // keys past the last token have zero logits, whose exponential overflows for a very negative lse
    const float weight = key < tokens ? exp2_approximate(logit - lse) : 0.0f;
    float grad = weight * (slope - dot);
    if ((a_.grad_bias != nullptr || a_.grad_logits != nullptr) && inside) {
      if (a_.grad_logits != nullptr) grad += to_float(grad_logits_[place]);
      if (a_.grad_bias != nullptr) grad_bias_[place] = round_to<T>(grad);
    }
    return {weight, grad};
  }

 private:
  const AttentionBackward& a_;  // members are read at each use, so that no register caches which pointers are null
  const T* bias_;
  T* grad_bias_;
  const T* grad_logits_;
};

// P and dS, or their transposes, rounded to T, as A fragments. `element(tile, i)` computes value i of a lane's C
// fragments.
template <typename T, int tiles, typename Element>
__device__ __forceinline__ void differentiate(
    uint32_t (&weights)[tiles][2], uint32_t (&grads)[tiles][2], const Element& element) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Differentiated low = element(tile, 2 * half), high = element(tile, 2 * half + 1);
      weights[tile][half] = round_to_pair<T>(low.weight, high.weight);
      grads[tile][half] = round_to_pair<T>(low.grad, high.grad);
    }
  }
}

}  // namespace vitfast
