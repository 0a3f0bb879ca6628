#include <algorithm>

#include "csrc/packed/packed_parallel.h"

namespace vitfast {
namespace {

Pixels pixels_of(const char* op, const Tensor& images) {
  switch (images.scalar_type()) {
    case ScalarType::Byte:
      return Pixels::uint8;
    case ScalarType::Float:
      return Pixels::float32;
    default:
      STD_TORCH_CHECK(images.scalar_type() == ScalarType::BFloat16, op, ": images must be uint8, float32 or bfloat16");
      return Pixels::bfloat16;
  }
}

void run_patch_embed(const PackedPatchEmbed& a) {
  const int64_t rows = a.batch * a.patches();
  if (rows == 0) return;
  const int64_t threads = std::min(worthwhile_threads(rows * a.gemm.weight.n * a.gemm.weight.k), rows);
  const PackedKernels& kernels = packed_kernels();
  const Workspace workspace(kernels.linear_workspace(a.gemm, ceil_div(rows, threads)), threads);
  for_each_part(threads, rows, workspace, [&](Range part, char* memory) { kernels.patch_embed(a, part, memory); });
}

Tensor packed_patch_embed(
    const Tensor& images,               // [B, I, H, W]
    const Tensor& packed,               // [n, I * patch_h * patch_w], packed
    const std::optional<Tensor>& bias,  // [n]
    int64_t n,
    int64_t patch_h,
    int64_t patch_w,
    const Tensor& prefix,                    // [T, n]
    const std::optional<Tensor>& positions,  // [H / patch_h * W / patch_w, n]
    std::string precision) {
  constexpr const char* op = "packed_patch_embed";
  STD_TORCH_CHECK(
      images.dim() == 4 && patch_h > 0 && patch_w > 0 && images.size(2) > 0 && images.size(3) > 0 &&
          images.size(2) % patch_h == 0 && images.size(3) % patch_w == 0,
      "packed_patch_embed: images must be [B, I, H, W] with H and W multiples of the patch's, above zero");
  STD_TORCH_CHECK(prefix.dim() == 2, "packed_patch_embed: prefix must be [T, n]");
  const Tensor pixels = as_contiguous(images);
  const int64_t batch = pixels.size(0), patches = pixels.size(2) / patch_h * (pixels.size(3) / patch_w);
  const int64_t k = pixels.size(1) * patch_h * patch_w, tokens = prefix.size(0) + patches;
  const Tensor out = new_tensor({batch, tokens, n}, ScalarType::Float);
  const PackedLinear gemm{
      packed_weight(op, "packed", packed, n, k, precision_of(op, precision), bias),
      Rows{},
      Type::float32,
      out.mutable_data_ptr(),
      Norm{},
      Activation::none,
      nullptr,
      floats_or_null(op, "positions", positions, {patches, n})};
  run_patch_embed(
      {gemm,
       pixels_of(op, pixels),
       pixels.const_data_ptr(),
       batch,
       pixels.size(1),
       {pixels.size(2), pixels.size(3)},
       {patch_h, patch_w},
       {patch_h, patch_w},
       {0, 0},
       prefix.size(0),
       floats_or_null(op, "prefix", prefix, {prefix.size(0), n})});
  return out;
}

// Checks a height and a width, each at least `least`.
Extent extent_of(const char* op, const char* name, const std::vector<int64_t>& sizes, int64_t least) {
  STD_TORCH_CHECK(
      sizes.size() == 2 && sizes[0] >= least && sizes[1] >= least && sizes[0] <= INT32_MAX && sizes[1] <= INT32_MAX,
      op,
      ": ",
      name,
      " must be a height and a width of at least ",
      least);
  return {sizes[0], sizes[1]};
}

Tensor packed_split_linear(
    const Tensor& images,                // [B, I, H, W]
    std::vector<int64_t> patch,          // height, width; as the next two
    std::vector<int64_t> stride,         //
    std::vector<int64_t> padding,        //
    const std::optional<Tensor>& gamma,  // [I * patch height * patch width]
    const std::optional<Tensor>& beta,   // [I * patch height * patch width]
    std::optional<double> eps,
    const Tensor& packed,               // [n, I * patch height * patch width], packed
    const std::optional<Tensor>& bias,  // [n]
    int64_t n,
    std::string precision) {
  constexpr const char* op = "packed_split_linear";
  STD_TORCH_CHECK(images.dim() == 4, "packed_split_linear: images must be [B, I, H, W]");
  const Tensor pixels = as_contiguous(images);
  const Extent size{pixels.size(2), pixels.size(3)}, window = extent_of(op, "patch", patch, 1);
  const Extent pad = extent_of(op, "padding", padding, 0);
  STD_TORCH_CHECK(
      window.height <= size.height + 2 * pad.height && window.width <= size.width + 2 * pad.width,
      "packed_split_linear: patch must fit into the padded images");
  STD_TORCH_CHECK(
      window.height <= max_elements / window.width / std::max<int64_t>(pixels.size(1), 1),
      "packed_split_linear: patch is too large");
  const int64_t k = pixels.size(1) * window.height * window.width;
  PackedPatchEmbed a{
      {packed_weight(op, "packed", packed, n, k, precision_of(op, precision), bias),
       Rows{},
       Type::float32,
       nullptr,
       norm_of(op, gamma, beta, eps, k)},
      pixels_of(op, pixels),
      pixels.const_data_ptr(),
      pixels.size(0),
      pixels.size(1),
      size,
      window,
      extent_of(op, "stride", stride, 1),
      pad,
      0,
      nullptr};
  const Tensor out = new_tensor({a.batch, a.patches(), n}, ScalarType::Float);
  a.gemm.out = out.mutable_data_ptr();
  run_patch_embed(a);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vitfast, CPU, m) {
  m.impl("packed_patch_embed", CHECKED_BOX(&packed_patch_embed));
  m.impl("packed_split_linear", CHECKED_BOX(&packed_split_linear));
}

}  // namespace vitfast
