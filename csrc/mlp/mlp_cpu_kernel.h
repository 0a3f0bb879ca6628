// Elementwise parts of the MLP: GELU and its derivative.

#pragma once

#include "csrc/cpu/vector.h"

namespace vitfast::VITFAST_ISA {

// The normal distribution's cumulative probability and density at x.
template <typename C>
struct Normal {
  Vector<C> probability;
  Vector<C> density;
};

constexpr double inverse_sqrt_2pi = 0.3989422804014327;

// Φ(-|x|) = exp(-x²/2) * erfcx(|x|/√2) / 2, where erfcx is a polynomial in u = 1 / (1 + 0.38 |x|/√2): relative error
// 2e-8 for |x| < 13 before rounding (a minimax fit). Unlike 1 + erf it preserves the lower tail's relative accuracy.
VITFAST_INLINE Normal<float> normal(Vector<float> x) {
  const Vector<float> absolute = x < 0.0f ? -x : x;
  const Vector<float> magnitude = absolute > 20.0f ? broadcast(20.0f) : absolute;  // infinity has no reciprocal
  const Vector<float> u = reciprocal(1.0f + 0.268700577f * magnitude);
  Vector<float> p = broadcast(0.0294371452f);
  p = p * u - 0.130905092f;
  p = p * u + 0.181419387f;
  p = p * u - 0.0801117495f;
  p = p * u + 0.1145593f;
  p = p * u + 0.0695311576f;
  p = p * u + 0.101896688f;
  p = p * u + 0.106968224f;
  p = p * u + 0.107204936f;
  // Φ(-9.5) is 1e-21; zero beyond it avoids slow arithmetic on denormal numbers
  const Vector<float> exponential = absolute > 9.5f ? Vector<float>{} : exp(-0.5f * (x * x));
  const Vector<float> tail = exponential * (p * u);
  return {x < 0.0f ? tail : 1.0f - tail, exponential * float(inverse_sqrt_2pi)};
}

VITFAST_INLINE Normal<double> normal(Vector<double> x) {
  Normal<double> result;
  for (int64_t i = 0; i < width<double>; ++i) {
    result.probability[i] = 0.5 * ::erfc(-x[i] * 0.7071067811865476);
    result.density[i] = inverse_sqrt_2pi * ::exp(-0.5 * x[i] * x[i]);
  }
  return result;
}

// The tanh approximation is x * sigmoid(2z), z = √(2/π) (x + 0.044715 x³).
template <typename C>
VITFAST_INLINE Vector<C> tanh_gate(Vector<C> x) {
  constexpr C minus_2_sqrt_2_over_pi = C(-1.5957691216057308);
  const Vector<C> exponent = (x + C(0.044715) * (x * x * x)) * minus_2_sqrt_2_over_pi;
  return C(1) / (C(1) + exp(exponent > C(88) ? broadcast(C(88)) : exponent));
}

template <bool tanh, typename C>
VITFAST_INLINE Vector<C> gelu(Vector<C> x) {
  if constexpr (tanh) {
    return x * tanh_gate<C>(x);
  } else {
    return x * normal(x).probability;
  }
}

template <typename C>
struct GeluWithDerivative {
  Vector<C> value;
  Vector<C> derivative;
};

template <bool tanh, typename C>
VITFAST_INLINE GeluWithDerivative<C> gelu_with_derivative(Vector<C> x) {
  if constexpr (tanh) {
    constexpr C two_sqrt_2_over_pi = C(1.5957691216057308);
    const Vector<C> gate = tanh_gate<C>(x);
    const Vector<C> slope = two_sqrt_2_over_pi * (C(1) + C(0.134145) * (x * x));
    return {x * gate, gate + x * (gate * (C(1) - gate)) * slope};
  } else {
    const Normal<C> n = normal(x);
    return {x * n.probability, n.probability + x * n.density};
  }
}

// Calls f(T{}, C{}, std::bool_constant<tanh>{}).
template <typename F>
void dispatch_gelu(const Gelu& a, const F& f) {
  dispatch_type(a.type, [&](auto stored, auto computed) {
    with_constant<false, true>(a.tanh, [&](auto tanh) { f(stored, computed, tanh); });
  });
}

void gelu_forward(const Gelu& a, int64_t begin, int64_t end) {
  dispatch_gelu(a, [&](auto stored, auto computed, auto tanh) {
    using T = decltype(stored);
    using C = decltype(computed);
    const T* x = static_cast<const T*>(a.pre_activation) + begin;
    T* y = static_cast<T*>(a.activation) + begin;
    for_each_vector<C>(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      store_up_to<C>(y + i, gelu<tanh, C>(load_up_to<C>(x + i, count)), count);
    });
  });
}

void gelu_backward(const Gelu& a, int64_t begin, int64_t end) {
  dispatch_gelu(a, [&](auto stored, auto computed, auto tanh) {
    using T = decltype(stored);
    using C = decltype(computed);
    const T* x = static_cast<const T*>(a.pre_activation) + begin;
    const T* grad = static_cast<const T*>(a.grad_activation) + begin;
    T* y = static_cast<T*>(a.activation) + begin;
    T* grad_x = static_cast<T*>(a.grad_pre_activation) + begin;
    for_each_vector<C>(end - begin, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const GeluWithDerivative<C> g = gelu_with_derivative<tanh, C>(load_up_to<C>(x + i, count));
      const Vector<C> product = load_up_to<C>(grad + i, count) * g.derivative;
      store_up_to<C>(y + i, g.value, count);
      store_up_to<C>(grad_x + i, product, count);
    });
  });
}

}  // namespace vitfast::VITFAST_ISA
