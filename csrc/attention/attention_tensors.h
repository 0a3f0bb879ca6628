// The attention operators on tensors: checks, views, allocation. A Device provides
//
//     static Tensor rows(const Tensor&);        // the tensor in a layout that the kernels can read, possibly a copy
//     static Tensor positions(const Tensor&);   // the same for gated_positional_attention's positional probabilities
//     static void forward(const AttentionForward&, const Tensor& like);
//     static void forward(const GatedPositionalAttention&, const Tensor& like);
//     static void backward(const AttentionBackward&, const Tensor& like);
//     static constexpr bool sums_bias_over_images;   // whether grad_bias has the shape of bias, or one for each image

#pragma once

#include "csrc/attention/attention.h"
#include "csrc/common/tensors.h"

namespace vitfast {

struct AttentionSizes {
  int64_t batch, heads, tokens, head_dim;
  std::vector<int64_t> logits() const { return {batch, heads, tokens, tokens}; }
  std::vector<int64_t> statistics() const { return {batch, heads, tokens}; }
  std::vector<int64_t> packed_out() const { return {batch, tokens, heads, head_dim}; }
};

inline HeadsView heads_view(const Tensor& x_BHND) {
  return {const_cast<void*>(x_BHND.const_data_ptr()), x_BHND.stride(0), x_BHND.stride(1), x_BHND.stride(2)};
}

inline HeadsView tokens_first_view(const Tensor& x_BNHD) {
  return {const_cast<void*>(x_BNHD.const_data_ptr()), x_BNHD.stride(0), x_BNHD.stride(2), x_BNHD.stride(1)};
}

// q (part 0), k (1) or v (2) of qkv [B, N, 3, H, D]
inline HeadsView packed_view(const Tensor& qkv, int64_t part) {
  char* data = static_cast<char*>(const_cast<void*>(qkv.const_data_ptr()));
  return {data + part * qkv.stride(2) * int64_t(qkv.element_size()), qkv.stride(0), qkv.stride(3), qkv.stride(1)};
}

inline AttentionSizes check_heads(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  check_tensor(op, "q", q);
  STD_TORCH_CHECK(q.dim() == 4 && q.size(3) > 0, op, ": q must have shape [B, H, N, D]");
  check_like(op, "k", k, q, sizes_of(q));
  check_like(op, "v", v, q, sizes_of(q));
  return {q.size(0), q.size(1), q.size(2), q.size(3)};
}

inline AttentionSizes check_packed(const char* op, const Tensor& qkv) {
  check_tensor(op, "qkv", qkv);
  STD_TORCH_CHECK(qkv.dim() == 5 && qkv.size(2) == 3 && qkv.size(4) > 0, op, ": qkv must have shape [B, N, 3, H, D]");
  return {qkv.size(0), qkv.size(3), qkv.size(1), qkv.size(4)};
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& like, const AttentionSizes& s) {
  if (!bias.has_value()) return;
  STD_TORCH_CHECK(bias->dim() == 4, op, ": bias must have four dimensions");
  check_like(op, "bias", *bias, like, {bias->size(0) == 1 ? 1 : s.batch, s.heads, s.tokens, s.tokens});
}

inline Attention attention_of_heads(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out) {
  return {type_of(q), heads_view(q), heads_view(k), heads_view(v), heads_view(out)};
}

inline Attention attention_of_packed(const Tensor& qkv, const Tensor& out) {
  return {type_of(qkv), packed_view(qkv, 0), packed_view(qkv, 1), packed_view(qkv, 2), tokens_first_view(out)};
}

// Fills the arguments common to both directions except type and views; `bias` is contiguous.
inline void describe(Attention& a, const AttentionSizes& s, const std::optional<Tensor>& bias, double scale) {
  a.bias = data_or_null(bias);
  a.bias_batch_stride = !bias.has_value() || bias->size(0) == 1 ? 0 : s.heads * s.tokens * s.tokens;
  a.batch = s.batch;
  a.heads = s.heads;
  a.tokens = s.tokens;
  a.head_dim = s.head_dim;
  a.scale = scale;
}

// The part of the forward that is common to separate and packed q, k, v.
template <typename Device>
std::tuple<Tensor, Tensor, std::optional<Tensor>> run_attention_forward(
    AttentionForward arguments,
    const Tensor& out,
    const AttentionSizes& s,
    const std::optional<Tensor>& bias,
    double scale,
    bool return_logits) {
  check_bias("attention_forward", bias, out, s);
  const std::optional<Tensor> bias_rows = contiguous_or_none(bias);
  const Tensor lse = new_tensor(out, s.statistics(), computing_type(out));
  std::optional<Tensor> logits;
  if (return_logits) logits = new_tensor(out, s.logits());
  describe(arguments, s, bias_rows, scale);
  arguments.logits = mutable_data_or_null(logits);
  arguments.lse = lse.mutable_data_ptr();
  if (s.batch * s.heads * s.tokens > 0) Device::forward(arguments, out);
  return {out, lse, logits};
}

template <typename Device>
std::tuple<Tensor, Tensor, std::optional<Tensor>> attention_forward(
    const Tensor& q_in,                 // [B, H, N, D]
    const Tensor& k_in,                 // [B, H, N, D]
    const Tensor& v_in,                 // [B, H, N, D]
    const std::optional<Tensor>& bias,  // [B or 1, H, N, N]
    double scale,
    bool return_logits) {
  const AttentionSizes s = check_heads("attention_forward", q_in, k_in, v_in);
  const Tensor q = Device::rows(q_in), k = Device::rows(k_in), v = Device::rows(v_in);
  const Tensor out = new_tensor(q, sizes_of(q));
  return run_attention_forward<Device>({attention_of_heads(q, k, v, out)}, out, s, bias, scale, return_logits);
}

template <typename Device>
std::tuple<Tensor, Tensor, std::optional<Tensor>> attention_packed_forward(
    const Tensor& qkv_in,               // [B, N, 3, H, D]
    const std::optional<Tensor>& bias,  // [B or 1, H, N, N]
    double scale,
    bool return_logits) {
  const AttentionSizes s = check_packed("attention_packed_forward", qkv_in);
  const Tensor qkv = Device::rows(qkv_in);
  const Tensor out = new_tensor(qkv, s.packed_out());
  return run_attention_forward<Device>({attention_of_packed(qkv, out)}, out, s, bias, scale, return_logits);
}

// The part of the backward that is common to separate and packed q, k, v. Returns the gradient of the bias.
template <typename Device>
std::optional<Tensor> run_attention_backward(
    AttentionBackward arguments,
    const Tensor& out,
    const AttentionSizes& s,
    const std::optional<Tensor>& grad_logits,
    const std::optional<Tensor>& bias,
    const Tensor& lse,
    double scale,
    bool need_bias_grad) {
  const char* op = "attention_backward";
  check_bias(op, bias, out, s);
  check_sizes(op, "lse", lse, s.statistics());
  STD_TORCH_CHECK(lse.scalar_type() == computing_type(out), op, ": lse has a wrong dtype");
  check_like(op, "grad_logits", grad_logits, out, s.logits());
  const std::optional<Tensor> bias_rows = contiguous_or_none(bias);
  const std::optional<Tensor> grad_logits_rows = contiguous_or_none(grad_logits);
  const Tensor lse_rows = as_contiguous(lse);
  std::optional<Tensor> grad_bias;
  if (need_bias_grad && bias.has_value()) {
    grad_bias = Device::sums_bias_over_images ? new_zeros(out, sizes_of(*bias), out.scalar_type())
                                              : new_tensor(out, s.logits());
  }

  describe(arguments, s, bias_rows, scale);
  arguments.grad_logits = data_or_null(grad_logits_rows);
  arguments.grad_bias = mutable_data_or_null(grad_bias);
  arguments.lse = lse_rows.const_data_ptr();
  if (s.batch * s.heads * s.tokens > 0) Device::backward(arguments, out);
  if (!grad_bias.has_value() || sizes_of(*grad_bias) == sizes_of(*bias)) return grad_bias;
  return sum_of_rows(*grad_bias, true);
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, std::optional<Tensor>> attention_backward(
    const Tensor& grad_out_in,                 // [B, H, N, D]
    const std::optional<Tensor>& grad_logits,  // [B, H, N, N]
    const Tensor& q_in,                        // [B, H, N, D]
    const Tensor& k_in,                        // [B, H, N, D]
    const Tensor& v_in,                        // [B, H, N, D]
    const std::optional<Tensor>& bias,         // [B or 1, H, N, N]
    const Tensor& out_in,                      // [B, H, N, D]
    const Tensor& lse,                         // [B, H, N]
    double scale,
    bool need_bias_grad) {
  const char* op = "attention_backward";
  const AttentionSizes s = check_heads(op, q_in, k_in, v_in);
  check_like(op, "grad_out", grad_out_in, q_in, sizes_of(q_in));
  check_like(op, "out", out_in, q_in, sizes_of(q_in));
  const Tensor q = Device::rows(q_in), k = Device::rows(k_in), v = Device::rows(v_in);
  const Tensor out = Device::rows(out_in), grad_out = Device::rows(grad_out_in);
  const auto like_q = [&] { return new_tensor(q, sizes_of(q)); };
  const Tensor grad_q = like_q(), grad_k = like_q(), grad_v = like_q();
  const AttentionBackward arguments{
      attention_of_heads(q, k, v, out),
      heads_view(grad_out),
      heads_view(grad_q),
      heads_view(grad_k),
      heads_view(grad_v)};
  return {
      grad_q,
      grad_k,
      grad_v,
      run_attention_backward<Device>(arguments, out, s, grad_logits, bias, lse, scale, need_bias_grad)};
}

template <typename Device>
std::tuple<Tensor, std::optional<Tensor>> attention_packed_backward(
    const Tensor& grad_out_in,                 // [B, N, H, D]
    const std::optional<Tensor>& grad_logits,  // [B, H, N, N]
    const Tensor& qkv_in,                      // [B, N, 3, H, D]
    const std::optional<Tensor>& bias,         // [B or 1, H, N, N]
    const Tensor& out_in,                      // [B, N, H, D]
    const Tensor& lse,                         // [B, H, N]
    double scale,
    bool need_bias_grad) {
  const char* op = "attention_packed_backward";
  const AttentionSizes s = check_packed(op, qkv_in);
  check_like(op, "grad_out", grad_out_in, qkv_in, s.packed_out());
  check_like(op, "out", out_in, qkv_in, s.packed_out());
  const Tensor qkv = Device::rows(qkv_in);
  const Tensor out = Device::rows(out_in), grad_out = Device::rows(grad_out_in);
  const Tensor grad_qkv = new_tensor(qkv, sizes_of(qkv));
  const AttentionBackward arguments{
      attention_of_packed(qkv, out),
      tokens_first_view(grad_out),
      packed_view(grad_qkv, 0),
      packed_view(grad_qkv, 1),
      packed_view(grad_qkv, 2)};
  return {grad_qkv, run_attention_backward<Device>(arguments, out, s, grad_logits, bias, lse, scale, need_bias_grad)};
}

template <typename Device>
Tensor gated_positional_attention(
    const Tensor& qkv_in,       // [B, N, 3, H, D]
    const Tensor& position_in,  // [H, N, N]
    const Tensor& gate_in,      // [H], float, or double if qkv is
    double scale) {
  const char* op = "gated_positional_attention";
  const AttentionSizes s = check_packed(op, qkv_in);
  check_like(op, "position", position_in, qkv_in, {s.heads, s.tokens, s.tokens});
  check_sizes(op, "gate", gate_in, {s.heads});
  STD_TORCH_CHECK(gate_in.scalar_type() == computing_type(qkv_in), op, ": gate has a wrong dtype");
  STD_TORCH_CHECK(gate_in.is_cuda() == qkv_in.is_cuda(), op, ": gate is on another device than the input");
  const Tensor qkv = Device::rows(qkv_in), position = Device::positions(position_in), gate = as_contiguous(gate_in);
  const Tensor out = new_tensor(qkv, s.packed_out());
  GatedPositionalAttention arguments{{attention_of_packed(qkv, out)}};
  describe(arguments, s, std::nullopt, scale);
  arguments.position = position.const_data_ptr();
  arguments.position_head_stride = position.stride(0);
  arguments.position_row_stride = position.stride(1);
  arguments.gate = gate.const_data_ptr();
  if (s.batch * s.heads * s.tokens > 0) Device::forward(arguments, qkv);
  return out;
}

}  // namespace vitfast
