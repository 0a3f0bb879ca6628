#include "csrc/packed/packed_tensors.h"

namespace vitfast {
namespace {

Pixels pixels_of(const Tensor& images) {
  switch (images.scalar_type()) {
    case ScalarType::Byte:
      return Pixels::uint8;
    case ScalarType::Float:
      return Pixels::float32;
    default:
      STD_TORCH_CHECK(
          images.scalar_type() == ScalarType::BFloat16,
          "packed_patch_embed: images must be uint8, float32 or bfloat16");
      return Pixels::bfloat16;
  }
}

Tensor packed_patch_embed(
    const Tensor& images,               // [B, I, H, W]
    const Tensor& packed,               // [n, I * patch_h * patch_w], packed
    const std::optional<Tensor>& bias,  // [n]
    int64_t n,
    int64_t patch_h,
    int64_t patch_w,
    const std::optional<Tensor>& shift,      // reserved
    const Tensor& prefix,                    // [T, n]
    const std::optional<Tensor>& positions,  // [H / patch_h * W / patch_w, n]
    std::string precision) {
  constexpr const char* op = "packed_patch_embed";
  STD_TORCH_CHECK(!shift.has_value(), "packed_patch_embed: shift is reserved; pass None");
  STD_TORCH_CHECK(
      images.dim() == 4 && patch_h > 0 && patch_w > 0 && images.size(2) > 0 && images.size(3) > 0 &&
          images.size(2) % patch_h == 0 && images.size(3) % patch_w == 0,
      "packed_patch_embed: images must be [B, I, H, W] with H and W multiples of the patch's, above zero");
  STD_TORCH_CHECK(prefix.dim() == 2, "packed_patch_embed: prefix must be [T, n]");
  const Tensor pixels = as_contiguous(images);
  const int64_t batch = pixels.size(0), patches = pixels.size(2) / patch_h * (pixels.size(3) / patch_w);
  const int64_t k = pixels.size(1) * patch_h * patch_w, tokens = prefix.size(0) + patches;
  const Tensor out = new_tensor({batch, tokens, n}, ScalarType::Float);
  const PackedPatchEmbed a{
      packed_weight(op, "packed", packed, n, k, precision_of(op, precision), bias),
      pixels_of(pixels),
      pixels.const_data_ptr(),
      pixels.size(1),
      pixels.size(2),
      pixels.size(3),
      patch_h,
      patch_w,
      prefix.size(0),
      residual_or_null(op, prefix, {prefix.size(0), n}),
      residual_or_null(op, positions, {patches, n}),
      static_cast<float*>(out.mutable_data_ptr())};
  const int64_t rows = batch * patches;
  if (rows == 0) return out;
  const int64_t wanted = worthwhile_threads(rows * n * k), threads = wanted < rows ? wanted : rows;
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.patch_embed_workspace(a, divide_up(rows, threads)), threads);
  for_each_part(threads, [&](int64_t part) {
    kernels.patch_embed(a, part * rows / threads, (part + 1) * rows / threads, workspace.part(part));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_patch_embed", TORCH_BOX(&packed_patch_embed));
}

}  // namespace vitfast
