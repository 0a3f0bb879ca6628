// attention, forward: the packed tensor qkv [B, N, 3, H, D], or q, k and v [B, H, N, D].

#include "csrc/attention/attention_forward_launch.cuh"
#include "tests/simt/programs/program.h"

using vitfast::AttentionForward;

template <typename T>
void run(simt_test::Program& program) {
  AttentionForward a{};
  const int64_t b = a.batch = program.integer("batch");
  const int64_t h = a.heads = program.integer("heads");
  const int64_t n = a.tokens = program.integer("tokens");
  const int64_t d = a.head_dim = program.integer("head_dim");
  a.scale = program.number("scale");
  T* out = program.output<T>("out", b * h * n * d);
  if (T* qkv = program.input<T>("qkv")) {
    a.q = {qkv, n * 3 * h * d, d, 3 * h * d};
    a.k = {qkv + h * d, n * 3 * h * d, d, 3 * h * d};
    a.v = {qkv + 2 * h * d, n * 3 * h * d, d, 3 * h * d};
    a.out = {out, n * h * d, d, h * d};
  } else {
    a.q = {program.input<T>("q"), h * n * d, n * d, d};
    a.k = {program.input<T>("k"), h * n * d, n * d, d};
    a.v = {program.input<T>("v"), h * n * d, n * d, d};
    a.out = {out, h * n * d, n * d, d};
  }
  a.bias = program.input<T>("bias");
  a.bias_batch_stride = program.integer("bias_batch_stride");
  a.lse = program.output<float>("lse", b * h * n);
  if (program.integer("return_logits") != 0) a.logits = program.output<T>("logits", b * h * n * n);
  vitfast::launch_attention_forward<T>(a, {});
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::Half, vitfast::BFloat16>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
