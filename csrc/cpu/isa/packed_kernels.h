// The kernels on packed weights, compiled once per instruction set by the files in this folder.

#include "csrc/packed/fma_peak.h"
#include "csrc/packed/packed_attention.h"
#include "csrc/packed/packed_linear.h"
#include "csrc/packed/packed_patch_embed.h"
#include "csrc/packed/packed_performer.h"

namespace vitfast::VITFAST_ISA {

void packed_linear(const PackedLinear& a, const Rectangle& part, char* workspace) {
  dispatch_precision(
      a.weight.precision, [&](auto precision) { linear_rectangle<decltype(precision)::value>(a, part, workspace); });
}

void packed_mlp(const PackedMlp& a, int64_t begin, int64_t end, char* workspace) {
  dispatch_precision(
      a.fc1.precision, [&](auto precision) { mlp_rows<decltype(precision)::value>(a, begin, end, workspace); });
}

void packed_patch_embed(const PackedPatchEmbed& a, int64_t begin, int64_t end, char* workspace) {
  dispatch_precision(a.weight.precision, [&](auto precision) {
    patch_embed_rows<decltype(precision)::value>(a, begin, end, workspace);
  });
}

#define VITFAST_PACKED_STRINGIZE_(name) #name
#define VITFAST_PACKED_STRINGIZE(name) VITFAST_PACKED_STRINGIZE_(name)

const PackedKernels packed_kernels = {
    VITFAST_PACKED_STRINGIZE(VITFAST_ISA),
    has_bfloat16_dot,
    has_tiles ? 400 : 200,  // with two images of 197 tokens, fewer tiles are partially filled
    linear_workspace,
    packed_linear,
    mlp_workspace,
    packed_mlp,
    attention_workspace,
    packed_attention,
    patch_embed_workspace,
    packed_patch_embed,
    performer_workspace,
    performer_keys,
    performer_queries,
    fma_peak,
};

}  // namespace vitfast::VITFAST_ISA
