#include "csrc/cpu/tensors.h"

namespace vitfast {
namespace {

// The sizes of the problem, and where in a tensor's shape they stand: [B, H, N, D] or, packed, [B, N, H, D].
struct Sizes {
  int64_t batch, heads, tokens, head_dim;
  std::vector<int64_t> logits() const { return {batch, heads, tokens, tokens}; }
  std::vector<int64_t> statistics() const { return {batch, heads, tokens}; }
};

Tensor with_contiguous_rows(const Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : torch::stable::contiguous(tensor);
}

std::optional<Tensor> contiguous_or_none(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

HeadsView view(const Tensor& x_BHND) {
  return {const_cast<void*>(x_BHND.const_data_ptr()), x_BHND.stride(0), x_BHND.stride(1), x_BHND.stride(2)};
}

HeadsView tokens_first_view(const Tensor& x_BNHD) {
  return {const_cast<void*>(x_BNHD.const_data_ptr()), x_BNHD.stride(0), x_BNHD.stride(2), x_BNHD.stride(1)};
}

// q (part 0), k (1) or v (2) of qkv [B, N, 3, H, D]
HeadsView packed_view(const Tensor& qkv, int64_t part, int64_t element_size) {
  char* data = static_cast<char*>(const_cast<void*>(qkv.const_data_ptr())) + part * qkv.stride(2) * element_size;
  return {data, qkv.stride(0), qkv.stride(3), qkv.stride(1)};
}

int64_t element_size(const Tensor& tensor) {
  switch (type_of(tensor)) {
    case Type::float32:
      return 4;
    case Type::float64:
      return 8;
    default:
      return 2;
  }
}

void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& like, const Sizes& s) {
  if (!bias.has_value()) return;
  check_same_type(op, "bias", *bias, like);
  STD_TORCH_CHECK(bias->dim() == 4, op, ": bias must have four dimensions");
  check_sizes(op, "bias", *bias, {bias->size(0) == 1 ? 1 : s.batch, s.heads, s.tokens, s.tokens});
}

// Fills what both directions share, apart from the views; `bias` is contiguous.
void describe(Attention& a, const Tensor& like, const Sizes& s, const std::optional<Tensor>& bias) {
  a.type = type_of(like);
  a.bias = data_or_null(bias);
  a.bias_batch_stride = !bias.has_value() || bias->size(0) == 1 ? 0 : s.heads * s.tokens * s.tokens;
  a.batch = s.batch;
  a.heads = s.heads;
  a.tokens = s.tokens;
  a.head_dim = s.head_dim;
}

Sizes check_heads(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  check_tensor(op, "q", q);
  STD_TORCH_CHECK(q.dim() == 4 && q.size(3) > 0, op, ": q must have shape [B, H, N, D]");
  check_same_type(op, "k", k, q);
  check_same_type(op, "v", v, q);
  check_sizes(op, "k", k, sizes_of(q));
  check_sizes(op, "v", v, sizes_of(q));
  return {q.size(0), q.size(1), q.size(2), q.size(3)};
}

Sizes check_packed(const char* op, const Tensor& qkv) {
  check_tensor(op, "qkv", qkv);
  STD_TORCH_CHECK(qkv.dim() == 5 && qkv.size(2) == 3 && qkv.size(4) > 0, op, ": qkv must have shape [B, N, 3, H, D]");
  return {qkv.size(0), qkv.size(3), qkv.size(1), qkv.size(4)};
}

// What both forms of the forward share: the bias, the logits, and the work.
std::tuple<Tensor, std::optional<Tensor>> run_forward(
    AttentionForward arguments,
    const Tensor& like,
    const Sizes& s,
    const std::optional<Tensor>& bias,
    bool return_logits) {
  const std::optional<Tensor> bias_rows = contiguous_or_none(bias);
  const Tensor lse = new_tensor(s.statistics(), computing_type(like));
  const std::optional<Tensor> logits =
      return_logits ? std::optional<Tensor>(new_tensor(like, s.logits())) : std::nullopt;
  describe(arguments, like, s, bias_rows);
  arguments.logits = mutable_data_or_null(logits);
  arguments.lse = lse.mutable_data_ptr();

  // few heads: split their rows, too, so that every thread has about four tasks; a result does not depend on the split
  const int64_t heads = s.batch * s.heads;
  const int64_t wanted_tasks = 4 * int64_t(torch::stable::get_num_threads());
  constexpr int64_t min_rows = 48;
  int64_t splits = heads >= wanted_tasks || heads == 0 ? 1 : (wanted_tasks + heads - 1) / heads;
  if (splits > s.tokens / min_rows) splits = s.tokens / min_rows;
  arguments.row_splits = splits > 1 ? splits : 1;
  if (s.tokens > 0) {
    const int64_t work = s.tokens * s.tokens * s.head_dim / arguments.row_splits / 8;
    parallel(heads * arguments.row_splits, work, [&](int64_t begin, int64_t end) {
      cpu_kernels().attention_forward(arguments, begin, end);
    });
  }
  return {lse, logits};
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> attention_forward(
    const Tensor& q_in,                 // [B, H, N, D]
    const Tensor& k_in,                 // [B, H, N, D]
    const Tensor& v_in,                 // [B, H, N, D]
    const std::optional<Tensor>& bias,  // [B or 1, H, N, N]
    double scale,
    bool return_logits) {
  const Sizes s = check_heads("attention_forward", q_in, k_in, v_in);
  check_bias("attention_forward", bias, q_in, s);
  const Tensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in), v = with_contiguous_rows(v_in);
  const Tensor out = new_tensor(q, sizes_of(q));
  AttentionForward arguments{};
  arguments.q = view(q);
  arguments.k = view(k);
  arguments.v = view(v);
  arguments.out = view(out);
  arguments.scale = scale;
  auto [lse, logits] = run_forward(arguments, q, s, bias, return_logits);
  return {out, lse, logits};
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> attention_packed_forward(
    const Tensor& qkv_in,               // [B, N, 3, H, D]
    const std::optional<Tensor>& bias,  // [B or 1, H, N, N]
    double scale,
    bool return_logits) {
  const Sizes s = check_packed("attention_packed_forward", qkv_in);
  check_bias("attention_packed_forward", bias, qkv_in, s);
  const Tensor qkv = with_contiguous_rows(qkv_in);
  const Tensor out = new_tensor(qkv, {s.batch, s.tokens, s.heads, s.head_dim});
  AttentionForward arguments{};
  arguments.q = packed_view(qkv, 0, element_size(qkv));
  arguments.k = packed_view(qkv, 1, element_size(qkv));
  arguments.v = packed_view(qkv, 2, element_size(qkv));
  arguments.out = tokens_first_view(out);
  arguments.scale = scale;
  auto [lse, logits] = run_forward(arguments, qkv, s, bias, return_logits);
  return {out, lse, logits};
}

// What both forms of the backward share: the bias, the logits' gradient, and the work. Returns the bias's gradient.
std::optional<Tensor> run_backward(
    AttentionBackward arguments,
    const Tensor& like,
    const Sizes& s,
    const std::optional<Tensor>& grad_logits,
    const std::optional<Tensor>& bias,
    const Tensor& lse,
    bool need_bias_grad) {
  const char* op = "attention_backward";
  check_bias(op, bias, like, s);
  check_sizes(op, "lse", lse, s.statistics());
  STD_TORCH_CHECK(lse.scalar_type() == computing_type(like), op, ": lse has a wrong dtype");
  if (grad_logits.has_value()) {
    check_same_type(op, "grad_logits", *grad_logits, like);
    check_sizes(op, "grad_logits", *grad_logits, s.logits());
  }
  const std::optional<Tensor> bias_rows = contiguous_or_none(bias);
  const std::optional<Tensor> grad_logits_rows = contiguous_or_none(grad_logits);
  const Tensor lse_rows = as_contiguous(lse);
  std::optional<Tensor> grad_bias;
  if (need_bias_grad && bias.has_value()) grad_bias = new_zeros(like, sizes_of(*bias), like.scalar_type());

  describe(arguments, like, s, bias_rows);
  arguments.grad_logits = data_or_null(grad_logits_rows);
  arguments.grad_bias = mutable_data_or_null(grad_bias);
  arguments.lse = lse_rows.const_data_ptr();
  const bool sums_over_batch = grad_bias.has_value() && arguments.bias_batch_stride == 0;
  if (s.tokens > 0) {
    const int64_t work = s.tokens * s.tokens * s.head_dim / 4;
    parallel(sums_over_batch ? s.heads : s.batch * s.heads, work, [&](int64_t begin, int64_t end) {
      cpu_kernels().attention_backward(arguments, begin, end);
    });
  }
  return grad_bias;
}

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
  const Sizes s = check_heads(op, q_in, k_in, v_in);
  check_same_type(op, "grad_out", grad_out_in, q_in);
  check_same_type(op, "out", out_in, q_in);
  check_sizes(op, "grad_out", grad_out_in, sizes_of(q_in));
  check_sizes(op, "out", out_in, sizes_of(q_in));
  const Tensor q = with_contiguous_rows(q_in), k = with_contiguous_rows(k_in), v = with_contiguous_rows(v_in);
  const Tensor out = with_contiguous_rows(out_in), grad_out = with_contiguous_rows(grad_out_in);
  const Tensor grad_q = new_tensor(q, sizes_of(q)), grad_k = new_tensor(q, sizes_of(q)),
               grad_v = new_tensor(q, sizes_of(q));
  AttentionBackward arguments{};
  arguments.q = view(q);
  arguments.k = view(k);
  arguments.v = view(v);
  arguments.out = view(out);
  arguments.grad_out = view(grad_out);
  arguments.grad_q = view(grad_q);
  arguments.grad_k = view(grad_k);
  arguments.grad_v = view(grad_v);
  arguments.scale = scale;
  return {grad_q, grad_k, grad_v, run_backward(arguments, q, s, grad_logits, bias, lse, need_bias_grad)};
}

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
  const Sizes s = check_packed(op, qkv_in);
  const std::vector<int64_t> out_sizes{s.batch, s.tokens, s.heads, s.head_dim};
  check_same_type(op, "grad_out", grad_out_in, qkv_in);
  check_same_type(op, "out", out_in, qkv_in);
  check_sizes(op, "grad_out", grad_out_in, out_sizes);
  check_sizes(op, "out", out_in, out_sizes);
  const Tensor qkv = with_contiguous_rows(qkv_in);
  const Tensor out = with_contiguous_rows(out_in), grad_out = with_contiguous_rows(grad_out_in);
  const Tensor grad_qkv = new_tensor(qkv, sizes_of(qkv));
  const int64_t size = element_size(qkv);
  AttentionBackward arguments{};
  arguments.q = packed_view(qkv, 0, size);
  arguments.k = packed_view(qkv, 1, size);
  arguments.v = packed_view(qkv, 2, size);
  arguments.out = tokens_first_view(out);
  arguments.grad_out = tokens_first_view(grad_out);
  arguments.grad_q = packed_view(grad_qkv, 0, size);
  arguments.grad_k = packed_view(grad_qkv, 1, size);
  arguments.grad_v = packed_view(grad_qkv, 2, size);
  arguments.scale = scale;
  return {grad_qkv, run_backward(arguments, qkv, s, grad_logits, bias, lse, need_bias_grad)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("attention_packed_forward", TORCH_BOX(&attention_packed_forward));
  m.impl("attention_packed_backward", TORCH_BOX(&attention_packed_backward));
}

}  // namespace vitfast
