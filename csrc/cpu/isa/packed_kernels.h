// The kernels on packed weights, compiled once per instruction set by the files in this folder. A file that defines
// VITFAST_EXTENDS compiles what its own instructions compute; the rest is that instruction set's.

#include "csrc/packed/gemm_operand.h"

namespace vitfast::VITFAST_ISA {

#if defined(VITFAST_EXTENDS)
constexpr const PackedKernels& extended = VITFAST_EXTENDS::packed_kernels;
#else
constexpr const PackedKernels& extended = packed_kernels;  // never called
#endif

}  // namespace vitfast::VITFAST_ISA

#include "csrc/packed/fma_peak.h"
#include "csrc/packed/packed_attention.h"
#include "csrc/packed/packed_linear.h"
#include "csrc/packed/packed_patch_embed.h"
#include "csrc/packed/packed_performer.h"

namespace vitfast::VITFAST_ISA {

int64_t linear_workspace(const PackedLinear& a, int64_t rows) {
  if (!is_own(a.weight.precision)) return extended.linear_workspace(a, rows);
  return linear_bytes(a, rows);
}

void packed_linear(const PackedLinear& a, Range rows, Range panels, char* workspace) {
  if (!is_own(a.weight.precision)) return extended.linear(a, rows, panels, workspace);
  with_own(a.weight.precision, [&](auto precision) { linear_part<precision>(a, rows, panels, workspace); });
}

int64_t mlp_workspace(const PackedMlp& a, int64_t rows) {
  if (!is_own(a.fc1.precision)) return extended.mlp_workspace(a, rows);
  return mlp_bytes(a, rows);
}

void packed_mlp(const PackedMlp& a, Range rows, char* workspace) {
  if (!is_own(a.fc1.precision)) return extended.mlp(a, rows, workspace);
  with_own(a.fc1.precision, [&](auto precision) { mlp_rows<precision>(a, rows, workspace); });
}

void packed_patch_embed(const PackedPatchEmbed& a, Range patches, char* workspace) {
  const Precision precision = a.gemm.weight.precision;
  if (!is_own(precision)) return extended.patch_embed(a, patches, workspace);
  with_own(precision, [&](auto constant) { embed_patches<constant>(a, patches, workspace); });
}

const PackedKernels packed_kernels = {
    VITFAST_STRINGIZE(VITFAST_ISA),
    has_bfloat16_dot,
    own_chunk_limits,
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
