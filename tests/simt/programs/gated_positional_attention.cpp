// ConViT's attention: the packed tensor qkv [B, N, 3, H, D], position [H, N, row_stride], gate [H].

#include "csrc/attention/gated_positional_attention_launch.cuh"
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
  vitfast::launch_attention_forward_whole<T, SIMT_HEAD_DIM>(a, {});
#else
  vitfast::launch_gated_positional_attention<T>(a, {});
#endif
}

int main(int argc, char** argv) {
  simt_test::Program program(argc, argv);
  if (program.text("type") == "float16") run<vitfast::Half>(program);
#if !defined(SIMT_HEAD_DIM)  // which means: one type and one head dimension, quick to compile, for mutants
  if (program.text("type") == "bfloat16") run<vitfast::BFloat16>(program);
#endif
#if !defined(__CUDACC__)
  *program.output<uint64_t>("bank_conflicts", 1) = simt::bank_conflicts();
#endif
  return program.finish();
}
