// Packs and unpacks weights, once per model, in plain C++.

#include <cmath>

#include "csrc/packed/packed_tensors.h"

namespace vitfast {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
void write(float value, char* target) {
  const T number(value);
  std::memcpy(target, &number, sizeof(T));
}

template <typename T>
float read(const char* source) {
  T number;
  std::memcpy(&number, source, sizeof(T));
  return float(number);
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
  const float scale = channel_scale(row, k);
  if (precision == Precision::int8) write<float>(scale, out + panel_count(n) * panel_bytes(precision, k) + column * 4);
  for (int64_t i = 0; i < k; ++i) {
    const Place p = place(precision, k, column, i);
    if (precision == Precision::float32) {
      write<float>(row[i], out + p.byte);
    } else if (precision == Precision::bfloat16) {
      write<BFloat16>(row[i], out + p.byte);
    } else if (precision == Precision::float16) {
      write<Half>(row[i], out + p.byte);
    } else {
      const int8_t q = quantized(row[i], scale);
      out[p.byte] = char(q);
      int32_t compensation;
      std::memcpy(&compensation, out + p.compensation_byte, 4);
      compensation -= 128 * q;
      std::memcpy(out + p.compensation_byte, &compensation, 4);
    }
  }
}

void unpack_column(Precision precision, const char* in, int64_t n, int64_t k, int64_t column, float* row) {
  const char* scales = in + panel_count(n) * panel_bytes(precision, k);
  const float scale = precision == Precision::int8 ? read<float>(scales + column * 4) : 1.0f;
  for (int64_t i = 0; i < k; ++i) {
    const char* number = in + place(precision, k, column, i).byte;
    row[i] = precision == Precision::float32    ? read<float>(number)
             : precision == Precision::bfloat16 ? read<BFloat16>(number)
             : precision == Precision::float16  ? read<Half>(number)
                                                : read<int8_t>(number) * scale;
  }
}

Tensor pack_weight(const Tensor& weight, std::string precision_name) {
  const Precision precision = precision_of("pack_weight", precision_name);
  STD_TORCH_CHECK(
      weight.scalar_type() == ScalarType::Float && weight.dim() == 2,
      "pack_weight: weight must be float32 of two dimensions [N, K]");
  const Tensor rows = as_contiguous(weight);
  const int64_t n = rows.size(0), k = rows.size(1);
  const float* source = static_cast<const float*>(rows.const_data_ptr());
  STD_TORCH_CHECK(
      precision != Precision::int8 ||
          std::all_of(source, source + n * k, [](float value) { return std::isfinite(value); }),
      "pack_weight: int8 holds no NaN or infinity");
  const std::vector<int64_t> sizes{packed_bytes(precision, n, k)};
  const Tensor packed = new_zeros(rows, sizes, ScalarType::Byte);
  const PackedHeader header{precision, n, k};
  std::memcpy(packed.mutable_data_ptr(), &header, sizeof header);
  char* target = static_cast<char*>(packed.mutable_data_ptr()) + packed_header;
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
  return "panels of 64, groups of 1024, version 2, " + precision;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("pack_weight", CHECKED_BOX(&pack_weight));
  m.impl("unpack_weight", CHECKED_BOX(&unpack_weight));
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("packed_layout", TORCH_BOX(&packed_layout));
}

}  // namespace vitfast
