// ConViT's attention: the packed tensor qkv [B, N, 3, H, D], position [H, N, row_stride], gate [H]. SIMT_HEAD_DIM
// compiles one head dimension of a type, for mutation tests.

#include "csrc/attention/gated_positional_attention_kernel.cuh"
#include "tests/simt/programs/program.h"

using vitfast::GatedPositionalAttention;

template <typename T>
void run(simt_test::Program& program) {
  GatedPositionalAttention a{};
  const int64_t b = a.batch = program.integer("batch");
  const int64_t h = a.heads = program.integer("heads");
  const int64_t n = a.tokens = program.integer("tokens");
  const int64_t d = a.head_dim = program.integer("head_dim");
  a.scale = program.number("scale");
  T* qkv = program.input<T>("qkv");
  a.q = {qkv, n * 3 * h * d, d, 3 * h * d};
  a.k = {qkv + h * d, n * 3 * h * d, d, 3 * h * d};
  a.v = {qkv + 2 * h * d, n * 3 * h * d, d, 3 * h * d};
  a.out = {program.output<T>("out", b * n * h * d), n * h * d, d, h * d};
  a.position = program.input<T>("position");
  a.position_row_stride = program.integer("position_row_stride");
  a.position_head_stride = n * a.position_row_stride;
  a.gate = program.input<float>("gate");
#if defined(SIMT_HEAD_DIM)
  vitfast::launch_attention_forward_instance<T, SIMT_HEAD_DIM, 19, 25>(a, {});
#else
  vitfast::launch_gated_positional_attention<T>(a, {});
#endif
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::Half, vitfast::BFloat16>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
