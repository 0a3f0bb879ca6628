// The product on compute capability 9.0: CUTLASS 3.x, whose warps part the work. One warp copies tiles by TMA, two
// groups of four warps multiply them (wgmma) and finish the sums; the next tile's copies are under way meanwhile.
//
// Every choice of the epilogue is made at run time, so there is one kernel for each type and tile.

#pragma once

#include <stdexcept>

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "csrc/linear/cutlass_types.cuh"
#include "csrc/linear/gemm_epilogue.cuh"
#include "csrc/linear/gemm_launch.cuh"

namespace vitfast {

// What a node of CUTLASS's epilogue tree declares that has arguments of its own, passed on as they are, and needs no
// workspace. Base: another node.
template <typename Base, typename Arguments_>
struct NodeSm90 : Base {
  using Arguments = Arguments_;
  using Params = Arguments_;

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static bool can_implement(const ProblemShape&, const Arguments&) {
    return true;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }
  template <class ProblemShape>
  static cutlass::Status initialize_workspace(
      const ProblemShape&, const Arguments&, void*, cudaStream_t, cutlass::CudaHostAdapter* = nullptr) {
    return cutlass::Status::kSuccess;
  }
};

// The residual as a leaf of the tree; whether there is one is known at run time.
template <typename Element>
struct OptionalSource : NodeSm90<cutlass::epilogue::fusion::Sm90SrcFetch<Element>, bool> {
  using Base = cutlass::epilogue::fusion::Sm90SrcFetch<Element>;
  struct SharedStorage {};

  CUTLASS_HOST_DEVICE OptionalSource() {}
  CUTLASS_HOST_DEVICE OptionalSource(const bool& is_there_, const SharedStorage&) : is_there(is_there_) {}

  CUTLASS_DEVICE bool is_producer_load_needed() const { return is_there; }
  CUTLASS_DEVICE bool is_C_load_needed() const { return is_there; }

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& arguments) {
    if (!is_there) cute::clear(arguments.tCrC);
    return Base::template get_consumer_store_callbacks<ReferenceSrc>(arguments);
  }

  bool is_there = false;
};

// The root of the tree: every choice of apply_epilogue, made at run time.
template <typename T>
struct FinishSm90 {
  template <typename Values>
  struct Function {
    using Arguments = GemmEpilogue;
    CUTLASS_DEVICE Values operator()(
        const Values& sums,
        const Values& bias,
        const Values& scale,
        const Values& residual,
        const Arguments& epilogue) const {
      return apply_epilogue<T, Values::kElements>(sums, bias, scale, residual, epilogue);
    }
  };
};

// A product of T whose sums go through `Tree`. A tile of the result: 128 rows, `columns` columns; depth is walked in
// steps of 64. Two neighbouring blocks share the weight's tile by multicast. WeightLayout: of a matrix [depth, N] in
// memory.
template <typename T, int columns, typename WeightLayout, typename Tree>
struct GemmSm90a {
  using Element = CutlassElement<T>;
  using Tile = cute::Shape<cute::Int<gemm_tile_rows>, cute::Int<columns>, cute::_64>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90,
      cutlass::arch::OpClassTensorOp,
      Tile,
      Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto,
      float,
      float,
      Element,
      cutlass::layout::RowMajor,
      gemm_alignment,
      Element,
      cutlass::layout::RowMajor,
      gemm_alignment,
      cutlass::epilogue::TmaWarpSpecializedCooperative,
      Tree>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90,
      cutlass::arch::OpClassTensorOp,
      Element,
      cutlass::layout::RowMajor,
      gemm_alignment,
      Element,
      WeightLayout,
      gemm_alignment,
      float,
      Tile,
      Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static auto rows_of(int length) { return cute::make_stride(int64_t(length), cute::_1{}, int64_t(0)); }
  static const Element* elements(const void* address) { return static_cast<const Element*>(address); }

  static void launch(typename Gemm::Arguments arguments, Stream stream) {
    auto& hardware = arguments.hw_info;
    check_cuda(cudaGetDevice(&hardware.device_id));
    check_cuda(cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount, hardware.device_id));
    run_cutlass<Gemm>(arguments, stream);
  }
};

template <typename T, int columns>
struct FusedGemmSm90a {
  using Element = CutlassElement<T>;
  using Tile = cute::Shape<cute::Int<gemm_tile_rows>, cute::Int<columns>, cute::_64>;
  using Row = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, Element, float>;
  using Tree = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::
          Sm90Compute<FinishSm90<T>::template Function, Element, float, cutlass::FloatRoundStyle::round_to_nearest>,
      cutlass::epilogue::fusion::Sm90AccFetch,
      Row,
      Row,
      OptionalSource<Element>>;
  using Gemm = GemmSm90a<T, columns, cutlass::layout::ColumnMajor, Tree>;

  static void launch(const GemmArguments& p, Stream stream) {
    // a tensor map needs an address, even if it is never read
    const void* source = p.residual != nullptr ? p.residual : p.out;
    Gemm::launch(
        {cutlass::gemm::GemmUniversalMode::kGemm,
         {p.rows, p.columns, p.depth, 1},
         {Gemm::elements(p.x), Gemm::rows_of(p.depth), Gemm::elements(p.weight), Gemm::rows_of(p.depth)},
         {{{},
           {Gemm::elements(p.bias), Element(0), {}},
           {Gemm::elements(p.scale), Element(1), {}},
           p.residual != nullptr,
           p.epilogue},
          Gemm::elements(source),
          Gemm::rows_of(p.columns),
          static_cast<Element*>(p.out),
          Gemm::rows_of(p.columns)}},
        stream);
  }
};

// Widths of ViTs are multiples of 192 (ViT-Ti, S, B) or of 256 (B, L): the larger tile reads less, and wastes nothing
// where it fits.
template <typename T>
void launch_gemm_sm90a(const GemmArguments& product, Stream stream) {
  if (product.columns % 256 == 0) return FusedGemmSm90a<T, 256>::launch(product, stream);
  FusedGemmSm90a<T, 192>::launch(product, stream);
}

}  // namespace vitfast
