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

  // qkv [B, N, 3, H, D], position [H, N, N], gate [H] in the computing type -> out [B, N, H, D]; for inference
  m.def("gated_positional_attention(Tensor qkv, Tensor position, Tensor gate, float scale) -> Tensor");

  // x [..., C] -> y [..., C], mean [...], rstd [...]; round_sum, round_operand and round_result round the sum, what is
  // normalized, and y, as csrc/quantize/rounding_arguments.h reads them. On CUDA y may have another dtype (out_dtype,
  // or that of x beside a float32 residual), as may grad_y
  m.def(
      "layer_norm_forward(Tensor x, Tensor? weight, Tensor? bias, float eps, int[]? round_operand, int[]? round_result,"
      " ScalarType? out_dtype=None) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "add_layer_norm_forward(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float eps, int[]? round_sum,"
      " int[]? round_operand, int[]? round_result) -> (Tensor summed, Tensor y, Tensor mean, Tensor rstd)");
  // grad_summed, the gradient of add_layer_norm's other result, is added to grad_x
  m.def(
      "layer_norm_backward(Tensor grad_y, Tensor? grad_summed, Tensor x, Tensor mean, Tensor rstd, Tensor? weight,"
      " bool has_bias) -> (Tensor grad_x, Tensor? grad_weight, Tensor? grad_bias)");

  // x [..., K], weight [N, K], bias [N], scale [N], residual [..., N] -> round(residual + scale * activation(x weightᵀ
  // + bias)) [..., N]; activation is none, gelu or gelu_tanh; pre_activation, the sum, only where the backward reads it
  m.def(
      "linear_forward(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? scale, Tensor? residual,"
      " int[]? round_result, bool save_for_backward) -> (Tensor out, Tensor? pre_activation)");
  m.def(
      "linear_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? pre_activation, Tensor? scale, str "
      "activation,"
      " bool has_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor? grad_bias, Tensor? grad_scale)");

  // x [..., C], fc1_weight [F, C], fc2_weight [C_out, F] -> out [..., C_out]; for the backward GELU's argument
  // pre_activation [..., F] and, on CUDA, where it is not computed again, its result activation [..., F]
  m.def(
      "mlp_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, Tensor? "
      "residual,"
      " str approximate, bool save_for_backward) -> (Tensor out, Tensor? pre_activation, Tensor? activation)");
  m.def(
      "mlp_backward(Tensor grad_out, Tensor x, Tensor pre_activation, Tensor? activation, Tensor fc1_weight, Tensor "
      "fc2_weight,"
      " str approximate, bool has_fc1_bias, bool has_fc2_bias) -> (Tensor grad_x, Tensor grad_fc1_weight,"
      " Tensor? grad_fc1_bias, Tensor grad_fc2_weight, Tensor? grad_fc2_bias)");

  // rounding: a format with its rounding, as csrc/quantize/rounding_arguments.h reads it; seed is one int64, for
  // stochastic rounding
  m.def("quantize_float(Tensor x, int[] rounding, Tensor? seed) -> Tensor");
  m.def("quantize_float_(Tensor(a!) x, int[] rounding, Tensor? seed) -> ()");
  m.def("quantize_fixed(Tensor x, int[] rounding, Tensor? seed) -> Tensor");
  m.def("quantize_fixed_(Tensor(a!) x, int[] rounding, Tensor? seed) -> ()");

  // x [..., K], weight [N, K], float32 -> [..., N]; accumulator: as rounding; chunk 0: the whole sum
  m.def("matmul_accumulate(Tensor x, Tensor weight, int[] accumulator, int chunk) -> Tensor");
  // CUDA: x [..., K], weight [N, K], float16, K by 8 -> [..., N], float32; sums of a chunk are float16, chunk as above
  m.def("matmul_fp16_accumulation(Tensor x, Tensor weight, bool round_accumulator, int chunk) -> Tensor");

  // x [B, H, n, n], matrix [N, n], of which few elements a row are not zero -> matrix x matrixᵀ [B, H, N, N]
  m.def("upsample_relations(Tensor x, Tensor matrix) -> Tensor");

  // Inference with packed weights; precision is fp32, bf16, fp16_32 or int8, activation is one of
  // csrc/packed/packed_tensors.h. A packed weight [N, K] is bytes as csrc/packed/packed.h lays them out.
  m.def("pack_weight(Tensor weight, str precision) -> Tensor");
  m.def("unpack_weight(Tensor packed, int n, int k, str precision) -> Tensor");
  m.def("packed_layout(str precision) -> str");
  // x [..., K], bias [n], scale [n], residual and factor [..., n] -> residual + scale * factor * activation(x wᵀ +
  // bias), float32, of layer_norm(x) if eps is given; a factor excludes scale and residual
  m.def(
      "packed_linear(Tensor x, Tensor? gamma, Tensor? beta, float? eps, Tensor packed, Tensor? bias, int n, str "
      "precision, str activation, Tensor? scale=None, Tensor? residual=None, Tensor? factor=None) -> Tensor");
  // residual + scale * fc2(hidden) with hidden = activation(fc1(y)) or, with a gate, activation(gate(y)) * fc1(y),
  // where y is layer_norm(x) or, without eps, x
  m.def(
      "packed_mlp(Tensor x, Tensor? gamma, Tensor? beta, float? eps, Tensor fc1, Tensor? fc1_bias, int hidden,"
      " Tensor? gate, Tensor? gate_bias, Tensor fc2, Tensor? fc2_bias, int n, str precision, str activation,"
      " Tensor? scale, Tensor? residual) -> Tensor");
  // qkv [B, N, 3, H, D] -> [B, N, H, D], float32 or bfloat16. rotary [H or 1, n, 2, D]: cosines and sines that rotate
  // the last n queries and keys, as vitfast/layers/rotary.py computes them. windows [W, n]: tokens that attend among
  // themselves, -1 for padding, whose q, k and v are `padding` [3 H D]; lengths [W]: how many of them, without padding.
  // bias [patterns, H, n, n], of which patterns [W] selects one per window. row_terms [D, 2 h - 1], column_terms
  // [D, 2 w - 1]: biases that depend on the query, on a grid of h w tokens (QueryBias in csrc/packed/packed.h).
  // cosine [H]: q and k are divided by their norms, and q is multiplied by it. key_bias [B, N] is added to the logits
  // of each key, and excludes windows and the other biases.
  m.def(
      "packed_attention(Tensor qkv, float scale, str precision, Tensor? rotary=None, bool is_interleaved=False,"
      " Tensor? bias=None, Tensor? windows=None, Tensor? patterns=None, Tensor? lengths=None,"
      " Tensor? row_terms=None, Tensor? column_terms=None, Tensor? padding=None, Tensor? cosine=None,"
      " Tensor? key_bias=None) -> Tensor");
  // softmax(scale q kᵀ + matrix relations matrixᵀ) v, and its logits; qkv [B, N, 3, H, D], relations [B, H, n, n],
  // matrix [N, n] (without it n is N)
  m.def(
      "packed_related_attention(Tensor qkv, Tensor? relations, Tensor? matrix, float scale, bool return_logits) ->"
      " (Tensor out, Tensor? logits)");
  // blocks of the same sizes: x [B, N, C] -> [B, N, C], float32. parameters: of each block norm1_weight, norm1_bias,
  // qkv, qkv_bias, proj, proj_bias, scale1, norm2_weight, norm2_bias, fc1, fc1_bias, gate, gate_bias, fc2, fc2_bias,
  // scale2, cosine. positions: of each block rotary, bias, windows, patterns, lengths, row_terms, column_terms. They,
  // cosine and gate as above. Norms are applied to the inputs of attention and MLP or, with is_post_norm, to their
  // results
  m.def(
      "packed_blocks(Tensor x, Tensor?[] parameters, Tensor?[] positions, float eps1, float eps2, int heads,"
      " int head_dim, float attention_scale, int hidden, str activation, str precision, bool is_interleaved=False,"
      " bool is_post_norm=False) -> Tensor");
  // the same, without positions, of blocks that merge `count` tokens each, as far as half of those after the prefix are
  // enough, between attention and MLP, as merge_tokens: x [B, N, C], sizes [B, N] -> the tokens left [B, M, C], their
  // sizes [B, M] and the index of the one that holds each token [B, N]
  m.def(
      "packed_merging_blocks(Tensor x, Tensor? sizes, Tensor?[] parameters, float eps1, float eps2, int heads,"
      " int head_dim, float attention_scale, int hidden, str activation, str precision, int count, int prefix) ->"
      " (Tensor out, Tensor out_sizes, Tensor places)");
  // images [B, I, H, W] uint8, float32 or bfloat16, prefix [T, n] -> [B, T + patches, n], float32
  m.def(
      "packed_patch_embed(Tensor images, Tensor packed, Tensor? bias, int n, int patch_h, int patch_w,"
      " Tensor prefix, Tensor? positions, str precision) -> Tensor");
  // the same product for overlapping patches of images [B, I, H, W] with zeros around them, (height, width) each, after
  // a LayerNorm unless eps is None -> [B, patches, n], float32; a patch's values in the order (channel, row, column)
  m.def(
      "packed_split_linear(Tensor images, int[2] patch, int[2] stride, int[2] padding, Tensor? gamma, Tensor? beta, "
      "float? eps, Tensor packed, Tensor? bias, int n, str precision) -> Tensor");
  // token merging: x [B, N, C], keys [B, N, H, D], sizes [B, N] -> the merged tokens [B, N - count, C], their sizes
  // [B, N - count] and the index of the one that holds each token [B, N]; count is from 1 to (N - prefix) / 2
  m.def(
      "merge_tokens(Tensor x, Tensor keys, Tensor? sizes, int count, int prefix) -> (Tensor out, Tensor out_sizes,"
      " Tensor places)");
  // a performer's attention: kqv [B, N, 3 D], projection [M, D], float32 -> [B, N, D], as
  // vitfast/layers/performer_attention.py computes it
  m.def("packed_performer(Tensor kqv, Tensor projection, float epsilon) -> Tensor");
  // share of the threads' time that they wait in packed_blocks because its parts are unequal, from 0 to 1
  m.def("packed_block_idle_share(int images, int tokens, int channels, int heads, int head_dim, int hidden) -> float");
  // multiply-adds in registers on every thread: the operations done
  m.def("fma_peak(str precision, int iterations) -> int");

  // the instruction set whose kernels run: baseline, avx2, avx512, avx512_vnni, avx512_bf16 or avx512_amx
  m.def("cpu_capability() -> str");
}
