// The GEMM epilogue on a tile of sums in L1: int8 scales, bias, activation, LayerScale, residual, and rounding to the
// next GEMM's precision.

#pragma once

#include "csrc/packed/gemm_microkernel.h"
#include "csrc/packed/gemm_operand.h"

namespace vitfast::VITFAST_ISA {

// How a result is stored; the last two are float32, rounded.
enum class Store { float32, bfloat16, float32_as_bfloat16, float32_as_float16 };

// out = residual + scale * factor * activation(sums + bias), [rows, n].
struct Destination {
  Activation activation;
  const float* scale;     // [n] or null
  const float* residual;  // [rows, n] or null
  Store store;
  void* out;
  int64_t out_stride;
  int64_t first_column;           // column n of the first element of out and factor
  float* partial;                 // [rows, 64]: a panel's sums of the groups so far; null: they are in `out`
  const float* factor = nullptr;  // [rows, n] or null; not with a scale or a residual
  int64_t factor_stride = 0;
};

// One tile of a Destination; column pointers are at the panel's first column.
struct Tile {
  const void* sums;  // [rows, 64] float32 or int32
  int64_t rows, columns;
  const float* row_scales;  // int8: one every `row_scale_stride`
  int64_t row_scale_stride;
  const float* column_scales;  // of int8
  const float* bias;           // or null
  const float* scale;          // or null
  const float* residual;       // or null
  int64_t residual_stride;
  const float* factor;  // or null
  int64_t factor_stride;
  float* partial;
  int64_t partial_stride;
  bool is_first_group, is_last_group;
  Store store;
  void* out;
  int64_t out_stride;
};

VITFAST_INLINE void store_result(Store how, void* row, int64_t column, Vector<float> v, int64_t count) {
  if (how == Store::bfloat16) {
    BFloat16* target = static_cast<BFloat16*>(row) + column;
    if (count == width<float>) {
      store_bfloat16(target, v);
    } else {
      BFloat16 numbers[width<float>];
      store_bfloat16(numbers, v);
      std::memcpy(target, numbers, size_t(count) * sizeof(BFloat16));
    }
  } else {
    if (how == Store::float32_as_bfloat16) v = round_to_bfloat16(v);
    if (how == Store::float32_as_float16) v = round_to_float16(v);
    store_up_to<float>(static_cast<float*>(row) + column, v, count);
  }
}

// Applies the epilogue to rows of a tile. Without an activation the sum starts from the residual, so that the groups of
// a GEMM can accumulate into `out` in turn. `stores`: the tile's, or
// empty where the instance serves all.
template <bool is_integer, Activation activation, Accuracy accuracy, Store... stores>
void finish_rows(const Tile& t, int64_t begin, int64_t end) {
  constexpr bool is_linear = activation == Activation::none;
  Store how = t.store;
  ((how = stores), ...);
  const int64_t element = how == Store::bfloat16 ? 2 : 4;
  const float* const bias = t.is_first_group ? t.bias : nullptr;
  const float* const scale = t.scale;
  const bool is_last = t.is_last_group;
  for (int64_t r = begin; r < end; ++r) {
    const float* const residual = t.residual == nullptr ? nullptr : t.residual + r * t.residual_stride;
    const float* const factor = t.factor == nullptr ? nullptr : t.factor + r * t.factor_stride;
    float* const partial = t.partial + r * t.partial_stride;
    void* const out = static_cast<char*>(t.out) + r * t.out_stride * element;
    const float* const addend = !t.is_first_group ? partial : is_linear ? residual : nullptr;
    const int32_t* const sums = static_cast<const int32_t*>(t.sums) + r * panel_columns;
    const float row_scale = is_integer ? t.row_scales[r * t.row_scale_stride] : 1.0f;
    const float* const column_scales = t.column_scales;
    for_each_vector<float>(t.columns, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      Vector<float> v = bit_cast<Vector<float>>(load_integers(sums + c));
      if constexpr (is_integer) {
        v = __builtin_convertvector(bit_cast<Integers<float>>(v), Vector<float>) *
            (row_scale * load(column_scales + c));
      }
      if (bias != nullptr) v += load_up_to<float>(bias + c, count);
      if (is_linear && scale != nullptr) v *= load_up_to<float>(scale + c, count);
      if (addend != nullptr) v += load_up_to<float>(addend + c, count);
      if (!is_last) return store_up_to<float>(partial + c, v, count);
      if constexpr (!is_linear) {
        v = activate<activation, accuracy>(v);
        if (scale != nullptr) v *= load_up_to<float>(scale + c, count);
        if (residual != nullptr) v += load_up_to<float>(residual + c, count);
      }
      if (factor != nullptr) v *= load_up_to<float>(factor + c, count);
      store_result(how, out, c, v, count);
    });
  }
}

using FinishRows = void (*)(const Tile&, int64_t begin, int64_t end);

// Only GELU, the most common activation, is computed less accurately for a precision of 8 bits.
template <bool is_integer, Accuracy gelu_accuracy>
FinishRows finish_function(Activation activation, Store how) {
  using A = Activation;
  using S = Store;
  FinishRows finish = nullptr;
  with_constant<A::none, A::gelu, A::gelu_tanh, A::gelu_quick, A::tanh, A::silu, A::relu>(activation, [&](auto kind) {
    constexpr Accuracy accuracy = kind == A::gelu ? gelu_accuracy : Accuracy::full;
    if constexpr (kind == A::none || kind == A::relu) {  // so short that the branch on the store counts
      with_constant<S::float32, S::bfloat16, S::float32_as_bfloat16, S::float32_as_float16>(
          how, [&](auto store) { finish = finish_rows<is_integer, kind, accuracy, store>; });
    } else {
      finish = finish_rows<is_integer, kind, accuracy>;
    }
  });
  return finish;
}

}  // namespace vitfast::VITFAST_ISA
