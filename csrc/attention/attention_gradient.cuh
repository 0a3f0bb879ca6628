// What the kernels of attention's backward share: D of a row, and P and dS of a place. With P = exp(logits - lse) and
// D_i = Σ_d grad_out_id out_id:
//
//     grad_v = Pᵀ grad_out     dS = P ∘ (grad_out vᵀ - D) + grad_logits     grad_bias = dS
//     grad_q = scale dS k      grad_k = scale dSᵀ q

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/cuda/matrix_step.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/warp.cuh"

namespace vitfast {

// D of a row, which a pair of neighbouring threads computes; both get it. Nothing is read where not `inside`.
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

// Two products of a place, of q and k and of grad_out and v, become P and dS.
struct Differentiated {
  float weight, grad;
};

// The matrices [N, N] of one head, of all images' heads. Who does not write grad_bias leaves that to another kernel.
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

  // `lse`, in units of ln 2, and D are those of the query's row; behind the last token the lse is infinite, and P zero.
  __device__ __forceinline__ Differentiated
  differentiate(int query, int key, float product, float slope, float lse, float dot) const {
    const int tokens = int(a_.tokens);
    const bool inside = key < tokens && query < tokens;
    const bool writes = writes_grad_bias && a_.grad_bias != nullptr;
    const int64_t place = int64_t(query) * tokens + key;
    float logit = product * (float(a_.scale) * log2_of_e);
    if (a_.bias != nullptr && inside) logit += to_float(bias_[place]) * log2_of_e;
    // keys behind the last token have logits of zero, of which an lse far below would make infinities
    const float weight = key < tokens ? exp2_approximate(logit - lse) : 0.0f;
    float grad = weight * (slope - dot);
    if ((writes || a_.grad_logits != nullptr) && inside) {
      if (a_.grad_logits != nullptr) grad += to_float(grad_logits_[place]);
      if (writes) grad_bias_[place] = round_to<T>(grad);
    }
    return {weight, grad};
  }

 private:
  const AttentionBackward& a_;  // whose members are looked at, so that no register remembers what is null
  const T* bias_;
  T* grad_bias_;
  const T* grad_logits_;
};

// The rows of keys, and the first column of queries, of a lane in a fragment with 16 rows.
struct LaneKeys {
  int key[2];
  int query;
};

// In: Sᵀ without scale and bias, and dPᵀ; lse and D of the queries from the lane's first on. Out: Pᵀ and dSᵀ, rounded
// to T, in the layout of A's registers.
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
