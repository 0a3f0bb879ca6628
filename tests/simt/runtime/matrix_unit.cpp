#include "tests/simt/runtime/matrix_unit.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "csrc/cuda/numbers.cuh"
#include "tests/simt/runtime/simt.h"

// Compiled for wider vectors, too; the program chooses as it starts.
#if defined(__x86_64__)
#define WITH_WIDE_VECTORS __attribute__((target_clones("avx512f", "avx2", "default"), flatten))
#else
#define WITH_WIDE_VECTORS
#endif

namespace simt {
namespace {

using vitfast::BFloat16;
using vitfast::Half;

constexpr int rows = 16, columns = 8;
using Row = double __attribute__((vector_size(columns * sizeof(double))));  // of results

uint64_t conflicts = 0;

const MmaSlot& slot_of(void* const* slots, int lane) {
  return *static_cast<const MmaSlot*>(slots[lane]);
}

// The element in the lower or upper half of a register.
template <typename T>
float element(uint32_t pair, int half) {
  return vitfast::to_float(T{uint16_t(pair >> (16 * half))});
}

// a [16, 16] and b [16, 8] of the warp.
template <typename T>
struct Operands {
  static constexpr int depth = 16;
  double a[rows][depth];
  Row b[depth];

  explicit Operands(void* const* slots) {
    for (int lane = 0; lane < warp_size; ++lane) {
      const MmaSlot& slot = slot_of(slots, lane);
      const int g = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) a[g + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = element<T>(slot.a[i], half);
        for (int i = 0; i < 2; ++i) b[2 * t + half + 8 * i][g] = element<T>(slot.b[i], half);
      }
    }
  }
};

// Products of two numbers of 16 bits are exact, their sums nearly so.
template <typename T>
void add_products(void* const* slots) {
  const Operands<T> operands(slots);
  Row sums[rows] = {};
  for (int row = 0; row < rows; ++row) {
    for (int k = 0; k < operands.depth; ++k) sums[row] += operands.a[row][k] * operands.b[k];
  }
  for (int lane = 0; lane < warp_size; ++lane) {
    float* d = static_cast<float*>(slot_of(slots, lane).d);
    for (int i = 0; i < 4; ++i) {
      d[i] = float(double(d[i]) + sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
    }
  }
}

// How a unit sums products of Half in Half, as two groups have modelled those of several GPUs from measurements
// (Khattak and Mikaitis, "Accurate models of NVIDIA tensor cores", 2025; Xie et al., "MMA-Sim", 2025).
// SIMT_FP16_ACCUMULATION names another one, its numbers in this order; tests/simt/test_fp16_accumulation.py finds a
// device's. The defaults are those of compute capability 9.0.
struct HalfSumModel {
  int terms = 16;            // products in a step, which adds them to the sum so far and rounds once, to the nearest
  int bits = 25;             // that an addend keeps below the largest one's exponent: the rest is cut off
  int least_exponent = -21;  // that the largest one counts as, at least

  static HalfSumModel chosen() {
    HalfSumModel model;
    const char* words = std::getenv("SIMT_FP16_ACCUMULATION");
    if (words != nullptr && std::sscanf(words, "%d,%d,%d", &model.terms, &model.bits, &model.least_exponent) != 3) {
      fail({nullptr, 0}, "SIMT_FP16_ACCUMULATION=%s is not three numbers", words);
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

const HalfSumModel half_sum_model = HalfSumModel::chosen();

}  // namespace

WITH_WIDE_VECTORS void mma_m16n8k16_bfloat16(void* const* slots) {
  add_products<BFloat16>(slots);
}

WITH_WIDE_VECTORS void mma_m16n8k16_half(void* const* slots) {
  add_products<Half>(slots);
}

void mma_m16n8k16_fp16_accumulation(void* const* slots) {
  const HalfSumModel& model = half_sum_model;
  const Operands<Half> operands(slots);
  for (int lane = 0; lane < warp_size; ++lane) {
    uint32_t* d = static_cast<uint32_t*>(slot_of(slots, lane).d);
    for (int i = 0; i < 2; ++i) {
      float sums[2];
      for (int half = 0; half < 2; ++half) {
        float row[16], column[16];
        for (int k = 0; k < 16; ++k) {
          row[k] = float(operands.a[lane / 4 + 8 * i][k]);
          column[k] = float(operands.b[k][2 * (lane % 4) + half]);
        }
        sums[half] = element<Half>(d[i], half);
        for (int k = 0; k < 16; k += model.terms) sums[half] = model.step(sums[half], row + k, column + k);
      }
      d[i] = vitfast::round_to_pair<Half>(sums[0], sums[1]);
    }
  }
}

void distribute_matrices(const uint16_t (*matrices)[8][8], bool transposed, void* const* slots) {
  for (int lane = 0; lane < warp_size; ++lane) {
    uint32_t* registers = static_cast<const LdmatrixSlot*>(slots[lane])->registers;
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint16_t (&matrix)[8][8] = matrices[m];
      const uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      registers[m] = low | high << 16;
    }
  }
}

void count_bank_conflicts(const void* const* places, int count, size_t bytes) {
  int users[warp_size] = {};
  for (int i = 0; i < count; ++i) {
    const bool repeated = std::find(places, places + i, places[i]) != places + i;
    if (!repeated) ++users[reinterpret_cast<uintptr_t>(places[i]) / bytes % size_t(count)];
  }
  conflicts += uint64_t(*std::max_element(users, users + count) - 1);
}

uint64_t bank_conflicts() {
  return conflicts;
}

}  // namespace simt
