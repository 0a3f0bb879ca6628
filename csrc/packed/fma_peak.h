// Measures the arithmetic peak of a precision: a loop of multiply-adds in registers only.

#pragma once

#include "csrc/packed/gemm.h"

namespace vitfast::VITFAST_ISA {

template <typename Dot>
int64_t run_dots(int64_t iterations, int64_t operations_a_lane) {
  constexpr int chains = 12;
  using Sum = typename Dot::Sum;
  // values unknown to the compiler, which would otherwise merge the chains
  Integers<float> a{}, b{};
  __asm__ volatile("" : "+m"(a), "+m"(b));
  Sum sums[chains];
#pragma GCC unroll 12
  for (int c = 0; c < chains; ++c) {
    Sum start{};
    __asm__ volatile("" : "+m"(start));
    sums[c] = start;
  }
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12  // else GCC keeps the array in memory
    for (int c = 0; c < chains; ++c) {
#if defined(__SSE2__)
      __asm__("" : "+v"(a));  // else GCC multiplies int16 once for all chains
#endif
      Dot::add(sums[c], a, b);
    }
  }
  Sum total = sums[0];
#pragma GCC unroll 12
  for (int c = 1; c < chains; ++c) total += sums[c];
  __asm__ volatile("" : : "m"(total));
  return iterations * chains * width<float> * operations_a_lane;
}

#if defined(__AMX_TILE__)
template <typename Dot>
int64_t run_tiles(int64_t iterations, int64_t operations_a_word) {
  const TileRegisters registers;
  for (int64_t i = 0; i < iterations; ++i) {
    Dot::template add<0, 0>();
    Dot::template add<0, 1>();
    Dot::template add<1, 0>();
    Dot::template add<1, 1>();
  }
  return iterations * 4 * amx_rows * amx_words * amx_words * operations_a_word;
}
#endif

inline int64_t fma_peak(Precision precision, int64_t iterations) {
  if (!is_own(precision)) return extended.fma_peak(precision, iterations);
  int64_t operations = 0;
  with_own(precision, [&](auto constant) {
    constexpr bool has_pairs = constant == Precision::bfloat16 && has_bfloat16_dot;
    constexpr int64_t products = constant == Precision::int8 ? (has_int8_dot ? 4 : 2) : has_pairs ? 2 : 1;  // of a word
    using Dot = typename Format<constant>::Dot;
#if defined(__AMX_TILE__)
    operations = run_tiles<Dot>(iterations, 2 * products);
#else
    operations = run_dots<Dot>(iterations, 2 * products);
#endif
  });
  return operations;
}

}  // namespace vitfast::VITFAST_ISA
