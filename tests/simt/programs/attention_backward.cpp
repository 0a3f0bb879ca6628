// attention, backward: the packed tensors qkv [B, N, 3, H, D], out and grad_out [B, N, H, D], or [B, H, N, D] each.

#include "csrc/attention/attention_backward_launch.cuh"
#include "tests/simt/programs/program.h"

using vitfast::AttentionBackward;
using vitfast::HeadsView;

template <typename T>
void run(simt_test::Program& program) {
  AttentionBackward a{};
  const int64_t b = a.batch = program.integer("batch");
  const int64_t h = a.heads = program.integer("heads");
  const int64_t n = a.tokens = program.integer("tokens");
  const int64_t d = a.head_dim = program.integer("head_dim");
  a.scale = program.number("scale");
  const auto rows = [&](T* data) { return HeadsView{data, n * h * d, d, h * d}; };
  const auto heads = [&](T* data) { return HeadsView{data, h * n * d, n * d, d}; };
  if (T* qkv = program.input<T>("qkv")) {
    const auto part = [&](T* data, int64_t i) { return HeadsView{data + i * h * d, n * 3 * h * d, d, 3 * h * d}; };
    T* grad_qkv = program.output<T>("grad_qkv", b * n * 3 * h * d);
    a.q = part(qkv, 0), a.k = part(qkv, 1), a.v = part(qkv, 2);
    a.grad_q = part(grad_qkv, 0), a.grad_k = part(grad_qkv, 1), a.grad_v = part(grad_qkv, 2);
    a.out = rows(program.input<T>("out")), a.grad_out = rows(program.input<T>("grad_out"));
  } else {
    a.q = heads(program.input<T>("q")), a.k = heads(program.input<T>("k")), a.v = heads(program.input<T>("v"));
    a.grad_q = heads(program.output<T>("grad_q", b * h * n * d));
    a.grad_k = heads(program.output<T>("grad_k", b * h * n * d));
    a.grad_v = heads(program.output<T>("grad_v", b * h * n * d));
    a.out = heads(program.input<T>("out")), a.grad_out = heads(program.input<T>("grad_out"));
  }
  a.lse = program.input<float>("lse");
  a.grad_logits = program.input<T>("grad_logits");
  a.bias = program.input<T>("bias");
  a.bias_batch_stride = program.integer("bias_batch_stride");
  if (a.bias != nullptr) a.grad_bias = program.output<T>("grad_bias", b * h * n * n);
  vitfast::launch_attention_backward<T>(a, {});
}

int main(int argc, char** argv) {
  return simt_test::run_typed<vitfast::Half, vitfast::BFloat16>(
      argc, argv, [](auto& program, auto element) { run<decltype(element)>(program); });
}
