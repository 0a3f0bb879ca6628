// Packs and unpacks weights, once per model, in plain C++.

#include <cmath>

#include "csrc/packed/packed_tensors.h"

namespace vitfast {
namespace {

uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

uint16_t half_bits(float value) {
  static const FloatFormat<Float32Bits> half =
      make_float_format<Float32Bits>(5, 10, 0x477fe000u, true, true, true, Overflow::inf);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = round_bits<Float32Bits, Rounding::nearest_even>(bits, half);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x7f800000) return uint16_t(sign | 0x7c00 | ((magnitude >> 13) & 0x3ff));
  float number;
  std::memcpy(&number, &magnitude, sizeof(number));
  number *= 0x1p-112f;  // exact: it has been rounded
  uint32_t shifted;
  std::memcpy(&shifted, &number, sizeof(shifted));
  return uint16_t(sign | (shifted >> 13));
}

// One scale per output channel; 1 if the channel is zero or too small.
float channel_scale(const float* row, int64_t k) {
  float largest = 0;
  for (int64_t i = 0; i < k; ++i) largest = std::fabs(row[i]) > largest ? std::fabs(row[i]) : largest;
  const float scale = largest / 127.0f;
  return scale >= 0x1p-126f ? scale : 1.0f;
}

int8_t quantized(float value, float scale) {
  const float q = std::nearbyintf(value / scale);
  return int8_t(q > 127.0f ? 127.0f : q >= -127.0f ? q : -127.0f);
}

// Location of a weight's element.
struct Place {
  int64_t byte;
  int64_t compensation_byte;  // int8 only
};

Place place(Precision precision, int64_t k, int64_t column, int64_t input) {
  const int64_t size = group_size(k), group = input / size, inside = input % size;
  const int64_t per_word = k_per_word(precision), element = word_bytes(precision) / per_word;
  const int64_t header = precision == Precision::int8 ? panel_columns * 4 : 0;
  const int64_t base = column / panel_columns * panel_bytes(precision, k) + group * group_bytes(precision, size);
  const int64_t word = inside / per_word * panel_columns + column % panel_columns;
  return {
      base + header + word * word_bytes(precision) + inside % per_word * element, base + column % panel_columns * 4};
}

void pack_column(Precision precision, const float* row, int64_t n, int64_t k, int64_t column, char* out) {
  float scale = 1.0f;
  if (precision == Precision::int8) {
    scale = channel_scale(row, k);
    std::memcpy(out + panel_count(n) * panel_bytes(precision, k) + column * 4, &scale, 4);
  }
  for (int64_t i = 0; i < k; ++i) {
    const Place p = place(precision, k, column, i);
    if (precision == Precision::float32) {
      std::memcpy(out + p.byte, row + i, 4);
    } else if (precision == Precision::int8) {
      const int8_t q = quantized(row[i], scale);
      out[p.byte] = char(q);
      int32_t compensation;
      std::memcpy(&compensation, out + p.compensation_byte, 4);
      compensation -= 128 * q;
      std::memcpy(out + p.compensation_byte, &compensation, 4);
    } else {
      const uint16_t bits = precision == Precision::bfloat16 ? bfloat16_bits(row[i]) : half_bits(row[i]);
      std::memcpy(out + p.byte, &bits, 2);
    }
  }
}

void unpack_column(Precision precision, const char* in, int64_t n, int64_t k, int64_t column, float* row) {
  float scale = 1.0f;
  if (precision == Precision::int8)
    std::memcpy(&scale, in + panel_count(n) * panel_bytes(precision, k) + column * 4, 4);
  for (int64_t i = 0; i < k; ++i) {
    const int64_t byte = place(precision, k, column, i).byte;
    if (precision == Precision::float32) {
      std::memcpy(row + i, in + byte, 4);
    } else if (precision == Precision::int8) {
      row[i] = float(int8_t(in[byte])) * scale;
    } else {
      uint16_t bits;
      std::memcpy(&bits, in + byte, 2);
      row[i] = precision == Precision::bfloat16 ? widened(BFloat16{bits}) : widened(Half{bits});
    }
  }
}

Tensor pack_weight(const Tensor& weight, std::string precision_name) {
  const Precision precision = precision_of("pack_weight", precision_name);
  STD_TORCH_CHECK(
      weight.scalar_type() == ScalarType::Float && weight.dim() == 2,
      "pack_weight: weight must be float32 of two dimensions [N, K]");
  const Tensor rows = as_contiguous(weight);
  const int64_t n = rows.size(0), k = rows.size(1);
  const std::vector<int64_t> sizes{packed_bytes(precision, n, k)};
  const Tensor packed = new_zeros(rows, sizes, ScalarType::Byte);
  const float* source = static_cast<const float*>(rows.const_data_ptr());
  char* target = static_cast<char*>(packed.mutable_data_ptr());
  parallel(n, k * 16, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) {
      pack_column(precision, source + column * k, n, k, column, target);
    }
  });
  return packed;
}

Tensor unpack_weight(const Tensor& packed, int64_t n, int64_t k, std::string precision_name) {
  const Precision precision = precision_of("unpack_weight", precision_name);
  const PackedWeight weight = packed_weight("unpack_weight", "packed", packed, n, k, precision, std::nullopt);
  const Tensor rows = new_tensor({n, k}, ScalarType::Float);
  float* target = static_cast<float*>(rows.mutable_data_ptr());
  parallel(n, k * 16, [&](int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; ++column) {
      unpack_column(precision, weight.panels, n, k, column, target + column * k);
    }
  });
  return rows;
}

// Must change whenever the layout in packed.h changes.
std::string packed_layout(std::string precision) {
  precision_of("packed_layout", precision);
  return "panels of 64, groups of 1024, version 1, " + precision;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("unpack_weight", TORCH_BOX(&unpack_weight));
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("packed_layout", TORCH_BOX(&packed_layout));
}

}  // namespace vitfast
