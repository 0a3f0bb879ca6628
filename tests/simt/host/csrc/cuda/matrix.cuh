// The fragments' layout is documented in csrc/cuda/matrix.cuh.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "csrc/cuda/numbers.cuh"
#include "tests/simt/runtime/simt.h"

namespace vitfast {
namespace host {

struct LdmatrixSlot {
  const void* row;
  uint32_t* registers;
};

template <bool transposed>
void ldmatrix_x4_of_warp(void* const* slots) {
  const void* rows[32];
  for (int lane = 0; lane < 32; ++lane) rows[lane] = static_cast<const LdmatrixSlot*>(slots[lane])->row;
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    simt::count_bank_conflicts(rows + 8 * m, 8, 16);
    for (int row = 0; row < 8; ++row) {
      simt::note_warp_read(rows[8 * m + row], 16);
      std::memcpy(matrix[row], rows[8 * m + row], 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<const LdmatrixSlot*>(slots[lane])->registers[m] = low | high << 16;
    }
  }
}

template <bool transposed>
void ldmatrix_x4(uint32_t (&registers)[4], const void* row, simt::Site site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    simt::fail(site, "ldmatrix from an address that is no multiple of 16");
  LdmatrixSlot slot{row, registers};
  simt::with_warp(ldmatrix_x4_of_warp<transposed>, &slot, site);
}

struct ElementSlot {
  const float* element;
  float value;
};

inline void load_element_of_warp(void* const* slots) {
  const void* elements[32];
  for (int lane = 0; lane < 32; ++lane) {
    ElementSlot& slot = *static_cast<ElementSlot*>(slots[lane]);
    elements[lane] = slot.element;
    simt::note_warp_read(slot.element, sizeof(float));
    slot.value = *slot.element;
  }
  simt::count_bank_conflicts(elements, 32, sizeof(float));
}

// The element in the lower or upper half of a register.
template <typename T>
float element(uint32_t pair, int half) {
  return to_float(T{uint16_t(pair >> (16 * half))});
}

struct MmaSlot {
  void* d;
  const uint32_t* a;
  uint32_t b[2];
};

// a [16, 16] and b [16, 8] of the warp, as float.
template <typename T>
struct Operands {
  float a[16][16], b[16][8];

  explicit Operands(void* const* slots) {
    for (int lane = 0; lane < 32; ++lane) {
      const MmaSlot& slot = *static_cast<const MmaSlot*>(slots[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = element<T>(slot.a[i], half);
        for (int i = 0; i < 2; ++i) b[2 * t + half + 8 * i][g] = element<T>(slot.b[i], half);
      }
    }
  }

  // Products of 16-bit numbers are exact in float, their sums nearly so in double.
  double product(int row, int column) const {
    double sum = 0.0;
    for (int k = 0; k < 16; ++k) sum += double(a[row][k]) * double(b[k][column]);
    return sum;
  }
};

template <typename T>
void mma_of_warp(void* const* slots) {
  const Operands<T> operands(slots);
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<float*>(static_cast<const MmaSlot*>(slots[lane])->d);
    for (int i = 0; i < 4; ++i) {
      d[i] = float(double(d[i]) + operands.product(lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2));
    }
  }
}

// The sum of float addends as the unit has been measured to compute it (csrc/cuda/matrix_step.cuh): all are cut off at
// one bit below the last one of the largest, and so is their sum at its own last bit.
inline float cut_off_sum(const double* addends, int count) {
  int exponent = 0;
  for (int i = 0; i < count; ++i) exponent = std::max(exponent, int(bits_of(addends[i]) >> 52 & 0x7ff));
  double sum = 0.0;
  if (exponent == 0 || exponent == 0x7ff) {  // all of them are zero, or one is no number
    for (int i = 0; i < count; ++i) sum += addends[i];
    return float(sum);
  }
  const double unit = std::ldexp(1.0, exponent - 1023 - 24), per_unit = 1.0 / unit;
  for (int i = 0; i < count; ++i) sum += std::trunc(addends[i] * per_unit) * unit;
  const float rounded = float(sum);
  return std::fabs(double(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

inline void mma_tf32_of_warp(void* const* slots) {
  constexpr int depth = 8;
  double a[16][depth], b[depth][8];
  // of an element the lower 13 bits are not read
  const auto element = [](uint32_t bits) { return double(from_bits(bits & ~0x1fffu)); };
  for (int lane = 0; lane < 32; ++lane) {
    const MmaSlot& slot = *static_cast<const MmaSlot*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][t + 4 * (i / 2)] = element(slot.a[i]);
    for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = element(slot.b[i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<float*>(static_cast<const MmaSlot*>(slots[lane])->d);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double addends[depth + 1];
      for (int k = 0; k < depth; ++k) addends[k] = a[row][k] * b[k][column];
      addends[depth] = d[i];
      d[i] = cut_off_sum(addends, depth + 1);
    }
  }
}

// How a unit sums products of Half in Half, as two groups have modelled those of several GPUs from measurements
// (Khattak and Mikaitis, "Accurate models of NVIDIA tensor cores", 2025; Xie et al., "MMA-Sim", 2025). SIMT_HALF_SUMS
// names another one, its numbers in this order; tests/simt/test_half_sums.py finds a device's. The defaults are those
// of compute capability 9.0.
struct HalfSumModel {
  int terms = 16;            // products in a step, which adds them to the sum so far and rounds once, to the nearest
  int bits = 25;             // that an addend keeps below the largest one's exponent: the rest is cut off
  int least_exponent = -21;  // that the largest one counts as, at least

  static HalfSumModel chosen() {
    HalfSumModel model;
    const char* words = std::getenv("SIMT_HALF_SUMS");
    if (words != nullptr && std::sscanf(words, "%d,%d,%d", &model.terms, &model.bits, &model.least_exponent) != 3) {
      simt::fail({nullptr, 0}, "SIMT_HALF_SUMS=%s is not three numbers", words);
    }
    return model;
  }

  // d + a b of `terms` products.
  float step(float d, const float* a, const float* b) const {
    double addends[17];
    int largest = least_exponent;
    for (int k = 0; k <= terms; ++k) {
      addends[k] = k < terms ? double(a[k]) * double(b[k]) : double(d);
      if (addends[k] != 0.0) largest = std::max(largest, k < terms ? exponent(a[k]) + exponent(b[k]) : exponent(d));
    }
    const double unit = std::ldexp(1.0, largest - bits), per_unit = 1.0 / unit;
    double sum = 0.0;  // exact: of whole numbers, or not finite
    for (int k = 0; k <= terms; ++k) sum += std::trunc(addends[k] * per_unit);
    return rounded(sum * unit);
  }

 private:
  // A product's is the sum of its factors'.
  static int exponent(float half) { return std::isfinite(half) ? std::max(std::ilogb(half), -14) : 0; }

  // To 11 bits, or a whole multiple of the smallest number; beyond the largest one lies infinity.
  static float rounded(double sum) {
    if (sum == 0.0 || !std::isfinite(sum)) return float(sum);
    const double quantum = std::ldexp(1.0, std::max(std::ilogb(sum), -14) - 10);
    const float result = float(std::nearbyint(sum / quantum) * quantum);
    return std::fabs(result) < 65536.0f ? result : std::copysign(HUGE_VALF, result);
  }
};

inline const HalfSumModel half_sum_model = HalfSumModel::chosen();

inline void mma_half_sums_of_warp(void* const* slots) {
  const HalfSumModel& model = half_sum_model;
  const Operands<Half> operands(slots);
  float columns[8][16];
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < 8; ++column) columns[column][k] = operands.b[k][column];
  }
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* d = static_cast<uint32_t*>(static_cast<const MmaSlot*>(slots[lane])->d);
    for (int i = 0; i < 2; ++i) {
      float sums[2];
      for (int half = 0; half < 2; ++half) {
        const float* row = operands.a[lane / 4 + 8 * i];
        const float* column = columns[2 * (lane % 4) + half];
        sums[half] = element<Half>(d[i], half);
        for (int k = 0; k < 16; k += model.terms) sums[half] = model.step(sums[half], row + k, column + k);
      }
      d[i] = round_to_pair<Half>(sums[0], sums[1]);
    }
  }
}

}  // namespace host

inline void ldmatrix_x4(uint32_t (&registers)[4], const void* row, simt::Site site = simt::Site::here()) {
  host::ldmatrix_x4<false>(registers, row, site);
}

inline void ldmatrix_x4_transposed(uint32_t (&registers)[4], const void* row, simt::Site site = simt::Site::here()) {
  host::ldmatrix_x4<true>(registers, row, site);
}

inline float load_element(const float* element, simt::Site site = simt::Site::here()) {
  host::ElementSlot slot{element, 0.0f};
  simt::with_warp(host::load_element_of_warp, &slot, site);
  return slot.value;
}

template <typename T>
inline void mma_m16n8k16(
    float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, simt::Site site = simt::Site::here()) {
  host::MmaSlot slot{d, a, {b0, b1}};
  simt::with_warp(host::mma_of_warp<T>, &slot, site);
}

inline void mma_m16n8k8_tf32(
    float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::Site::here()) {
  host::MmaSlot slot{d, a, {b[0], b[1]}};
  simt::with_warp(host::mma_tf32_of_warp, &slot, site);
}

inline void mma_m16n8k16_half_sums(
    uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, simt::Site site = simt::Site::here()) {
  host::MmaSlot slot{d, a, {b0, b1}};
  simt::with_warp(host::mma_half_sums_of_warp, &slot, site);
}

}  // namespace vitfast
