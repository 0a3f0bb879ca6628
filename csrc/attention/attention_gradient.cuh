// Elementwise part of the attention backward. With P = exp(logits - lse) and D_i = Σ_d grad_out_id out_id:
//
//     grad_v = Pᵀ grad_out     dS = P ∘ (grad_out vᵀ - D) + grad_logits     grad_bias = dS
//     grad_q = scale dS k      grad_k = scale dSᵀ q

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/matrix_step.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/threads.cuh"

namespace vitfast {

// D of a row, computed by a pair of adjacent threads; both get the result. Reads nothing if not `inside`.
template <typename T>
__device__ __forceinline__ float row_dot(const T* out, const T* grad_out, int columns, bool inside, int thread) {
  float dot = 0.0f;
  if (inside) {
    for (int chunk = thread % 2; chunk * Pack<T>::size < columns; chunk += 2) {
      const Pack<T> o = load_pack(out + chunk * Pack<T>::size);
      const Pack<T> g = load_pack(grad_out + chunk * Pack<T>::size);
#pragma unroll
      for (int i = 0; i < Pack<T>::size; ++i) dot += to_float(o.element[i]) * to_float(g.element[i]);
    }
  }
  return dot + shuffle_xor(dot, 1);
}

// An element of P and of dS.
struct Differentiated {
  float weight, grad;
};

// The [N, N] matrices of one head. `writes_grad_bias` is false where another kernel writes it.
template <typename T, bool writes_grad_bias>
class GradientSquares {
 public:
  __device__ __forceinline__ GradientSquares(const AttentionBackward& a, unsigned head) : a_(a) {
    const unsigned image = head / unsigned(a.heads);
    const int64_t square = a.tokens * a.tokens, bias_head = (head - image * a.heads) * square;
    bias_ = static_cast<const T*>(a.bias) + image * a.bias_batch_stride + bias_head;
    grad_bias_ = static_cast<T*>(a.grad_bias) + image * a.grad_bias_batch_stride + bias_head;
    grad_logits_ = static_cast<const T*>(a.grad_logits) + head * square;
  }

  // `product` = q k and `slope` = grad_out v of the element; `lse` in units of ln 2 and `dot` = D of the query's row.
  // Past the last token the lse is infinite, so that P is zero.
  __device__ __forceinline__ Differentiated
  differentiate(int query, int key, float product, float slope, float lse, float dot) const {
    const int tokens = int(a_.tokens);
    const bool inside = key < tokens && query < tokens;
    const bool writes = writes_grad_bias && a_.grad_bias != nullptr;
    const int64_t place = int64_t(query) * tokens + key;
    float logit = product * (float(a_.scale) * log2_of_e);
    if (a_.bias != nullptr && inside) logit += to_float(bias_[place]) * log2_of_e;
    // keys past the last token have zero logits, whose exponential overflows for a very negative lse
    const float weight = key < tokens ? exp2_approximate(logit - lse) : 0.0f;
    float grad = weight * (slope - dot);
    if ((writes || a_.grad_logits != nullptr) && inside) {
      if (a_.grad_logits != nullptr) grad += to_float(grad_logits_[place]);
      if (writes) grad_bias_[place] = round_to<T>(grad);
    }
    return {weight, grad};
  }

 private:
  const AttentionBackward& a_;  // members are read at each use, so that no register caches which pointers are null
  const T* bias_;
  T* grad_bias_;
  const T* grad_logits_;
};

// A lane's coordinates in a fragment of Sᵀ: its rows (keys) and its first column (query).
struct LaneKeys {
  int key[2];
  int query;
};

// In: Sᵀ without scale and bias, dPᵀ, and lse and D from the lane's first query on. Out: Pᵀ and dSᵀ, rounded to T, as A
// fragments.
template <typename T, bool writes_grad_bias, int query_tiles>
__device__ __forceinline__ void differentiate_keys(
    const GradientSquares<T, writes_grad_bias>& squares,
    const float (&products)[query_tiles][4],
    const float (&slopes)[query_tiles][4],
    uint32_t (&weights)[query_tiles][MatrixStep<T>::tile_registers],
    uint32_t (&grads)[query_tiles][MatrixStep<T>::tile_registers],
    const float* lse,
    const float* dots,
    const LaneKeys& at) {
#pragma unroll
  for (int tile = 0; tile < query_tiles; ++tile) {
    Differentiated found[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = tile * 8 + i % 2;
      found[i] = squares.differentiate(
          at.query + column, at.key[i / 2], products[tile][i], slopes[tile][i], lse[column], dots[column]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      MatrixStep<T>::set_columns(weights[tile], half, found[2 * half].weight, found[2 * half + 1].weight);
      MatrixStep<T>::set_columns(grads[tile], half, found[2 * half].grad, found[2 * half + 1].grad);
    }
  }
}

}  // namespace vitfast
