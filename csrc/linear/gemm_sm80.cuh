// The product from compute capability 8.0 on: CUTLASS 2.x, tiles copied by cp.async, mma.sync.
//
// Every choice of the epilogue is made at run time, so there is one kernel for each type.

#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "csrc/linear/cutlass_types.cuh"
#include "csrc/linear/gemm_epilogue.cuh"
#include "csrc/linear/gemm_launch.cuh"

namespace vitfast {

// The residual as a leaf of CUTLASS's epilogue tree; without one nothing is read.
template <typename Load>
struct OptionalLoad : Load {
  using Load::Load;

  template <typename Always>
  struct Callbacks : Always {
    CUTLASS_DEVICE Callbacks(Always&& always, bool is_there_) : Always(always), is_there(is_there_) {
      if (!is_there) cute::clear(Always::tC_rAux);
    }
    CUTLASS_DEVICE void begin_step(int step) {
      if (is_there) Always::begin_step(step);
    }
    bool is_there;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape problem) {
    auto always = Load::get_callbacks(tile, thread, problem);
    return Callbacks<decltype(always)>(static_cast<decltype(always)&&>(always), Load::params_ptr->ptr_aux != nullptr);
  }
};

// What a node of the tree declares that has arguments of its own, passed on as they are, and needs no workspace.
template <typename Arguments_>
struct NodeSm80 : cutlass::epilogue::threadblock::detail::VisitorImpl2x<> {
  using Arguments = Arguments_;
  using Params = Arguments_;

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }
};

// The root of the computation: apply_epilogue, which CUTLASS's own node could not tell its choices.
template <typename T>
struct FinishSm80 : NodeSm80<GemmEpilogue> {
  struct SharedStorage {};

  CUTLASS_HOST_DEVICE FinishSm80() {}
  CUTLASS_HOST_DEVICE FinishSm80(const Params& params, const SharedStorage&) : epilogue(&params) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE explicit Callbacks(const GemmEpilogue* epilogue_) : epilogue(epilogue_) {}

    template <typename Element, int count>
    CUTLASS_DEVICE static cutlass::Array<float, count> widened(const cutlass::Array<Element, count>& values) {
      return cutlass::NumericArrayConverter<float, Element, count>{}(values);
    }

    template <typename Sum, typename Element, int count>
    CUTLASS_DEVICE cutlass::Array<float, count> visit(
        int,
        int,
        int,
        int,
        const cutlass::Array<Sum, count>&,
        const cutlass::Array<Sum, count>& sums,
        const cutlass::Array<Element, count>& bias,
        const cutlass::Array<Element, count>& scale,
        const cutlass::Array<Element, count>& residual) {
      return apply_epilogue<T, count>(sums, widened(bias), widened(scale), widened(residual), *epilogue);
    }

    const GemmEpilogue* epilogue;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord, int, ProblemShape) {
    return Callbacks(epilogue);
  }

  const GemmEpilogue* epilogue;
};

// The tile of a product of T and the leaves of its epilogue tree.
template <typename T>
struct TileSm80 {
  using Element = CutlassElement<T>;
  using Tile = cutlass::gemm::GemmShape<gemm_tile_rows, 128, 32>;
  using WarpTile = cutlass::gemm::GemmShape<64, 64, 32>;

  using Threads = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, WarpTile, Element, gemm_alignment, 1>;
  using RowStride = cute::Stride<cute::_0, cute::_1, int64_t>;
  using MatrixStride = cute::Stride<int64_t, cute::_1, int64_t>;
  using Row = cutlass::epilogue::threadblock::VisitorRowBroadcast<Threads, Element, RowStride>;
  using Load = cutlass::epilogue::threadblock::VisitorAuxLoad<Threads, Element, MatrixStride>;
  using Store = cutlass::epilogue::threadblock::
      VisitorAuxStore<Threads, Element, cutlass::FloatRoundStyle::round_to_nearest, MatrixStride>;

  static MatrixStride rows_of(int length) { return {length, cute::_1{}, int64_t(0)}; }
  static Element* elements(const void* address) { return const_cast<Element*>(static_cast<const Element*>(address)); }
};

// A product of T whose sums go through `Tree`. WeightLayout: of a matrix [depth, N] in memory.
template <typename T, typename WeightLayout, typename Tree>
struct GemmSm80 : TileSm80<T> {
  using typename TileSm80<T>::Element;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
  static constexpr int stages = 4;

  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      Element,
      cutlass::layout::RowMajor,
      cutlass::ComplexTransform::kNone,
      gemm_alignment,
      Element,
      WeightLayout,
      cutlass::ComplexTransform::kNone,
      gemm_alignment,
      Element,
      cutlass::layout::RowMajor,
      gemm_alignment,
      float,
      float,
      cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80,
      typename TileSm80<T>::Tile,
      typename TileSm80<T>::WarpTile,
      Instruction,
      Tree,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>,
      stages,
      cutlass::arch::OpMultiplyAdd>::GemmKernel;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  // `weight_stride`: between what lies side by side in memory.
  static void launch(
      cutlass::gemm::GemmCoord sizes,
      const typename Tree::Arguments& tree,
      const void* x,
      const void* weight,
      int weight_stride,
      Stream stream) {
    const typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        sizes,
        1,
        tree,
        x,
        weight,
        nullptr,
        nullptr,
        0,
        0,
        0,
        0,
        sizes.k(),
        weight_stride,
        0,
        0};
    run_cutlass<Gemm>(arguments, stream);
  }
};

template <typename T>
struct FusedGemmSm80 {
  using Leaves = TileSm80<T>;
  using Element = typename Leaves::Element;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      typename Leaves::Store,
      cutlass::epilogue::threadblock::Sm80EVT<
          FinishSm80<T>,
          cutlass::epilogue::threadblock::VisitorAccFetch,
          typename Leaves::Row,
          typename Leaves::Row,
          OptionalLoad<typename Leaves::Load>>>;

  static void launch(const GemmArguments& p, Stream stream) {
    const typename Tree::Arguments tree{
        {{},
         {Leaves::elements(p.bias), Element(0), {}},
         {Leaves::elements(p.scale), Element(1), {}},
         {Leaves::elements(p.residual), Element(0), Leaves::rows_of(p.columns)},
         p.epilogue},
        {Leaves::elements(p.out), Leaves::rows_of(p.columns)}};
    using Gemm = GemmSm80<T, cutlass::layout::ColumnMajor, Tree>;
    Gemm::launch({p.rows, p.columns, p.depth}, tree, p.x, p.weight, p.depth, stream);
  }
};

template <typename T>
void launch_gemm_sm80(const GemmArguments& product, Stream stream) {
  FusedGemmSm80<T>::launch(product, stream);
}

}  // namespace vitfast
