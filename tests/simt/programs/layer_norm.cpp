// layer_norm, forward and backward: x [rows, C].

#include "csrc/layer_norm/layer_norm_launch.cuh"
#include "tests/simt/programs/float_rounding.h"

using vitfast::LayerNormBackward;
using vitfast::LayerNormForward;

template <typename W>
constexpr vitfast::Type type_of() {
  if (std::is_same_v<W, float>) return vitfast::Type::float32;
  return std::is_same_v<W, vitfast::Half> ? vitfast::Type::float16 : vitfast::Type::bfloat16;
}

// T: the type of the residual stream, U: of the branch, W: of the parameters.
template <typename T, typename U, typename W>
void run(simt_test::Program& program) {
  const int64_t rows = program.integer("rows"), channels = program.integer("channels");
  if (program.text("direction") == "forward") {
    LayerNormForward a{};
    a.parameter_type = type_of<W>();
    a.rows = rows;
    a.channels = channels;
    a.eps = program.number("eps");
    a.residual = program.input<T>("residual");
    a.x = a.residual != nullptr ? static_cast<const void*>(program.input<U>("x")) : program.input<T>("x");
    a.weight = program.input<W>("weight");
    a.bias = program.input<W>("bias");
    if (a.residual != nullptr) a.summed = program.output<T>("summed", rows * channels);
    a.y = program.output<U>("y", rows * channels);
    a.mean = program.output<float>("mean", rows);
    a.rstd = program.output<float>("rstd", rows);
    const auto round_sum = simt_test::optional_float_rounding(program, "round_sum");
    const auto round_operand = simt_test::optional_float_rounding(program, "round_operand");
    const auto round_result = simt_test::optional_float_rounding(program, "round_result");
    a.round_sum = round_sum.has_value() ? &*round_sum : nullptr;
    a.round_operand = round_operand.has_value() ? &*round_operand : nullptr;
    a.round_result = round_result.has_value() ? &*round_result : nullptr;
    return vitfast::launch_layer_norm_forward<T, U>(a, {});
  }
  LayerNormBackward a{};
  a.parameter_type = type_of<W>();
  a.rows = rows;
  a.channels = channels;
  a.rows_per_chunk = program.integer("rows_per_chunk");
  a.x = program.input<T>("x");
  a.grad_y = program.input<U>("grad_y");
  a.grad_summed = program.input<T>("grad_summed");
  a.weight = program.input<W>("weight");
  a.mean = program.input<float>("mean");
  a.rstd = program.input<float>("rstd");
  a.grad_x = program.output<T>("grad_x", rows * channels);
  const int64_t sums = vitfast::ceil_div(rows, a.rows_per_chunk) * channels;
  if (a.weight != nullptr) a.partial_weight = program.output<float>("partial_weight", sums);
  if (program.integer("has_bias") != 0) a.partial_bias = program.output<float>("partial_bias", sums);
  vitfast::launch_layer_norm_backward<T, U>(a, {});
}

int main(int argc, char** argv) {
  return simt_test::run_typed<float, vitfast::BFloat16, vitfast::Half>(argc, argv, [](auto& program, auto element) {
    using T = decltype(element);
    if constexpr (std::is_same_v<T, vitfast::BFloat16>) {
      if (program.text("stream_type") == "float32") return run<float, T, float>(program);
      if (program.text("parameter_type") == "float32") return run<T, T, float>(program);
    }
    run<T, T, T>(program);
  });
}
