// The kernels on packed weights, compiled once per instruction set by the files in this folder.

#include "csrc/packed/fma_peak.h"
#include "csrc/packed/packed_attention.h"
#include "csrc/packed/packed_linear.h"
#include "csrc/packed/packed_patch_embed.h"
#include "csrc/packed/packed_performer.h"

namespace vitfast::VITFAST_ISA {

void packed_linear(const PackedLinear& a, Range rows, Range panels, char* workspace) {
  with_precision(a.weight.precision, [&](auto precision) { linear_part<precision>(a, rows, panels, workspace); });
}

void packed_mlp(const PackedMlp& a, Range rows, char* workspace) {
  with_precision(a.fc1.precision, [&](auto precision) { mlp_rows<precision>(a, rows, workspace); });
}

void packed_patch_embed(const PackedPatchEmbed& a, Range patches, char* workspace) {
  with_precision(a.gemm.weight.precision, [&](auto precision) { embed_patches<precision>(a, patches, workspace); });
}

const PackedKernels packed_kernels = {
    VITFAST_STRINGIZE(VITFAST_ISA),
    has_bfloat16_dot,
    has_tiles ? 400 : 200,  // with two images of 197 tokens, fewer tiles are partially filled
    linear_workspace,
    packed_linear,
    mlp_workspace,
    packed_mlp,
    attention_workspace,
    packed_attention,
    packed_patch_embed,
    performer_workspace,
    performer_keys,
    performer_queries,
    fma_peak,
};

}  // namespace vitfast::VITFAST_ISA
