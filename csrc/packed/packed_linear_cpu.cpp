#include "csrc/packed/packed_parallel.h"

namespace vitfast {
namespace {

Tensor packed_linear(
    const Tensor& x,                     // [..., K]
    const std::optional<Tensor>& gamma,  // [K]
    const std::optional<Tensor>& beta,   // [K]
    std::optional<double> eps,           // none: no LayerNorm
    const Tensor& packed,                // [n, K], packed
    const std::optional<Tensor>& bias,   // [n]
    int64_t n,
    std::string precision,
    std::string activation,
    const std::optional<Tensor>& scale,     // [n]
    const std::optional<Tensor>& residual,  // [..., n]
    const std::optional<Tensor>& factor)    // [..., n]
{
  constexpr const char* op = "packed_linear";
  STD_TORCH_CHECK(!factor || !(scale || residual), op, ": a factor excludes scale and residual");
  const RowsTensor rows(op, x);
  const std::vector<int64_t> sizes = with_last(x, n);
  const Tensor out = new_tensor(sizes, ScalarType::Float);
  const PackedLinear a{
      packed_weight(op, "packed", packed, n, rows.k, precision_of(op, precision), bias),
      rows.rows(),
      Type::float32,
      out.mutable_data_ptr(),
      norm_of(op, gamma, beta, eps, rows.k),
      activation_of(op, activation),
      floats_or_null(op, "scale", scale, {n}),
      floats_or_null(op, "residual", residual, sizes),
      floats_or_null(op, "factor", factor, sizes)};
  run_linear(a, rows.count);
  return out;
}

Tensor packed_mlp(
    const Tensor& x,                        // [..., K]
    const std::optional<Tensor>& gamma,     // [K]
    const std::optional<Tensor>& beta,      // [K]
    std::optional<double> eps,              // none: no LayerNorm
    const Tensor& fc1,                      // [hidden, K], packed
    const std::optional<Tensor>& fc1_bias,  // [hidden]
    int64_t hidden,
    const std::optional<Tensor>& gate,       // [hidden, K], packed
    const std::optional<Tensor>& gate_bias,  // [hidden]
    const Tensor& fc2,                       // [n, hidden], packed
    const std::optional<Tensor>& fc2_bias,   // [n]
    int64_t n,
    std::string precision_name,
    std::string activation,
    const std::optional<Tensor>& scale,     // [n]
    const std::optional<Tensor>& residual)  // [..., n]
{
  constexpr const char* op = "packed_mlp";
  const Precision precision = precision_of(op, precision_name);
  const RowsTensor rows(op, x);
  const std::vector<int64_t> sizes = with_last(x, n);
  const Tensor out = new_tensor(sizes, ScalarType::Float);
  const PackedMlp a{
      packed_weight(op, "fc1", fc1, hidden, rows.k, precision, fc1_bias),
      packed_weight(op, "fc2", fc2, n, hidden, precision, fc2_bias),
      rows.rows(),
      norm_of(op, gamma, beta, eps, rows.k),
      activation_of(op, activation),
      floats_or_null(op, "scale", scale, {n}),
      floats_or_null(op, "residual", residual, sizes),
      static_cast<float*>(out.mutable_data_ptr()),
      gate_of(op, gate, gate_bias, hidden, rows.k, precision)};
  run_mlp(a, rows.count);
  return out;
}

int64_t fma_peak(std::string precision_name, int64_t iterations) {
  const Precision precision = precision_of("fma_peak", precision_name);
  STD_TORCH_CHECK(iterations <= 100'000'000, "fma_peak: more than 100,000,000 iterations, which take half a second");
  const int64_t threads = int64_t(torch::stable::get_num_threads());
  std::vector<int64_t> operations(size_t(threads), 0);
  for_each_part(
      threads, [&](int64_t part) { operations[size_t(part)] = packed_kernels().fma_peak(precision, iterations); });
  int64_t sum = 0;
  for (const int64_t count : operations) sum += count;
  return sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_linear", CHECKED_BOX(&packed_linear));
  m.impl("packed_mlp", CHECKED_BOX(&packed_mlp));
}

STABLE_TORCH_LIBRARY_IMPL(vitfast, CompositeExplicitAutograd, m) {
  m.impl("fma_peak", CHECKED_BOX(&fma_peak));
}

}  // namespace vitfast
