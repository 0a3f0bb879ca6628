// Every operator's schema. The Python functions in vitfast/ops are the public face; what they pass has been checked
// there.
//
// Shapes: B batch, N tokens, C channels, H heads, D head dimension, F hidden width.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vitfast, m) {
  // q, k, v [B, H, N, D], bias [B or 1, H, N, N] -> out [B, H, N, D], lse [B, H, N], logits [B, H, N, N]
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, bool return_logits)"
      " -> (Tensor out, Tensor lse, Tensor? logits)");
  m.def(
      "attention_backward(Tensor grad_out, Tensor? grad_logits, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor out,"
      " Tensor lse, float scale, bool need_bias_grad) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor? "
      "grad_bias)");
  // qkv [B, N, 3, H, D] -> out [B, N, H, D]
  m.def(
      "attention_packed_forward(Tensor qkv, Tensor? bias, float scale, bool return_logits)"
      " -> (Tensor out, Tensor lse, Tensor? logits)");
  m.def(
      "attention_packed_backward(Tensor grad_out, Tensor? grad_logits, Tensor qkv, Tensor? bias, Tensor out, Tensor "
      "lse,"
      " float scale, bool need_bias_grad) -> (Tensor grad_qkv, Tensor? grad_bias)");

  // x [..., C] -> y [..., C], mean [...], rstd [...]; round_sum, round_operand and round_result round the sum, what is
  // normalized, and y, as csrc/quantize/float_rounding.h reads them; an empty list does not
  m.def(
      "layer_norm_forward(Tensor x, Tensor? weight, Tensor? bias, float eps, int[] round_operand, int[] round_result)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "add_layer_norm_forward(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, int[] round_sum,"
      " int[] round_operand, int[] round_result) -> (Tensor summed, Tensor y, Tensor mean, Tensor rstd)");
  // grad_summed, the gradient of add_layer_norm's other result, is added to grad_x
  m.def(
      "layer_norm_backward(Tensor grad_y, Tensor? grad_summed, Tensor x, Tensor mean, Tensor rstd, Tensor? weight,"
      " bool has_bias) -> (Tensor grad_x, Tensor? grad_weight, Tensor? grad_bias)");

  // x [..., C], fc1_weight [F, C], fc2_weight [C_out, F] -> out [..., C_out], pre_activation [..., F]
  m.def(
      "mlp_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, Tensor? "
      "residual,"
      " str approximate, bool save_for_backward) -> (Tensor out, Tensor? pre_activation)");
  m.def(
      "mlp_backward(Tensor grad_out, Tensor x, Tensor pre_activation, Tensor fc1_weight, Tensor fc2_weight,"
      " str approximate, bool has_fc1_bias, bool has_fc2_bias) -> (Tensor grad_x, Tensor grad_fc1_weight,"
      " Tensor? grad_fc1_bias, Tensor grad_fc2_weight, Tensor? grad_fc2_bias)");

  // rounding: a format with its rounding, as csrc/quantize/float_rounding.h and fixed_rounding.h read it; seed is one
  // int64, for stochastic rounding
  m.def("quantize_float(Tensor x, int[] rounding, Tensor? seed) -> Tensor");
  m.def("quantize_float_(Tensor(a!) x, int[] rounding, Tensor? seed) -> ()");
  m.def("quantize_fixed(Tensor x, int[] rounding, Tensor? seed) -> Tensor");
  m.def("quantize_fixed_(Tensor(a!) x, int[] rounding, Tensor? seed) -> ()");

  // x [..., K], weight [N, K], float32 -> [..., N]; accumulator: as rounding; chunk 0: the whole sum
  m.def("matmul_accumulate(Tensor x, Tensor weight, int[] accumulator, int chunk) -> Tensor");

  // the instruction set whose kernels run: baseline, avx2 or avx512
  m.def("cpu_capability() -> str");
}
