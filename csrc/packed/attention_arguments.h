// Arguments of the attention operators: positions, windows and biases.

#pragma once

#include "csrc/packed/packed_tensors.h"

namespace vitfast {

// `rotary`: the tables.
inline Rotary rotary_of(
    const char* op,
    const std::optional<Tensor>& rotary,
    bool is_interleaved,
    int64_t tokens,
    int64_t heads,
    int64_t head_dim) {
  if (!rotary.has_value()) return {};
  STD_TORCH_CHECK(
      rotary->dim() == 4 && (rotary->size(0) == heads || rotary->size(0) == 1) && rotary->size(1) <= tokens &&
          rotary->size(2) == 2 && rotary->size(3) == head_dim && head_dim % 2 == 0 &&
          rotary->scalar_type() == ScalarType::Float && rotary->is_contiguous(),
      op,
      ": rotary must be contiguous float32 [H or 1, at most N, 2, D] for an even D");
  return {static_cast<const float*>(rotary->const_data_ptr()), rotary->size(1), rotary->size(0) == 1, is_interleaved};
}

// Sets the windows, whose tokens were those of the image until now, and the bias.
inline void set_windows(
    const char* op,
    PackedAttention& a,
    const std::optional<Tensor>& bias,
    const std::optional<Tensor>& windows,
    const std::optional<Tensor>& patterns,
    const std::optional<Tensor>& lengths,
    const std::optional<Tensor>& row_terms,
    const std::optional<Tensor>& column_terms,
    const float* padding) {
  const int64_t image_tokens = a.tokens;
  int64_t pattern_count = 1;
  if (windows.has_value()) {
    STD_TORCH_CHECK(a.rotary.tables == nullptr, op, ": rotary cannot be used with windows");
    const int64_t* tokens = indices_of(op, "windows", *windows, 2, -1, image_tokens);
    const int64_t padded = std::count(tokens, tokens + windows->numel(), int64_t(-1));
    STD_TORCH_CHECK(windows->numel() - padded == image_tokens, op, ": windows must hold every token of an image once");
    a.windows = {tokens, nullptr, nullptr, windows->size(0), image_tokens, padding};
    a.tokens = windows->size(1);
  }
  if (bias.has_value()) {
    pattern_count = bias->dim() > 0 ? bias->size(0) : 0;
    a.bias = floats_or_null(op, "bias", bias, {pattern_count, a.heads, a.tokens, a.tokens});
    a.bias_stride = a.tokens;
    a.bias_head_stride = a.tokens * a.tokens;
    a.bias_pattern_stride = a.heads * a.bias_head_stride;
  }
  if (patterns.has_value()) {
    a.windows.patterns = indices_of(op, "patterns", *patterns, 1, 0, pattern_count);
    STD_TORCH_CHECK(
        windows.has_value() && patterns->size(0) == a.windows.count, op, ": patterns must hold one index per window");
  }
  if (lengths.has_value()) {
    a.windows.lengths = indices_of(op, "lengths", *lengths, 1, 1, a.tokens + 1);
    STD_TORCH_CHECK(
        windows.has_value() && lengths->size(0) == a.windows.count, op, ": lengths must hold one length per window");
  }
  if (row_terms.has_value() || column_terms.has_value()) {
    const auto side = [&](const std::optional<Tensor>& terms) {
      return terms.has_value() && terms->dim() == 2 ? (terms->size(1) + 1) / 2 : 0;
    };
    const int64_t height = side(row_terms), width = side(column_terms);
    STD_TORCH_CHECK(
        height * width == a.tokens && a.scale > 0 && a.rotary.tables == nullptr && !lengths.has_value(),
        op,
        ": row_terms and column_terms must be [D, 2 height - 1] and [D, 2 width - 1] for a grid of all tokens, with a "
        "positive scale and without rotary and lengths");
    a.query_bias = {
        floats_or_null(op, "row_terms", row_terms, {a.head_dim, 2 * height - 1}),
        floats_or_null(op, "column_terms", column_terms, {a.head_dim, 2 * width - 1}),
        height,
        width};
  }
}

}  // namespace vitfast
