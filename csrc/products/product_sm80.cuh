// The product from compute capability 8.0 on: CUTLASS 2.x, tiles copied by cp.async, mma.sync.
//
// Every choice of the epilogue is made at run time, so there is one kernel for each type.

#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "csrc/products/cutlass_types.cuh"
#include "csrc/products/product_epilogue.cuh"
#include "csrc/products/product_launch.cuh"

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

// The root of the computation: finish_products, which CUTLASS's own node could not tell its choices.
template <typename T>
struct FinishSm80 : cutlass::epilogue::threadblock::detail::VisitorImpl2x<> {
  using Arguments = ProductEpilogue;
  using Params = ProductEpilogue;
  struct SharedStorage {};

  template <class ProblemShape>
  static constexpr Params to_underlying_arguments(const ProblemShape&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class ProblemShape>
  static size_t get_workspace_size(const ProblemShape&, const Arguments&) {
    return 0;
  }

  CUTLASS_HOST_DEVICE FinishSm80() {}
  CUTLASS_HOST_DEVICE FinishSm80(const Params& params, const SharedStorage&) : epilogue(&params) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE explicit Callbacks(const ProductEpilogue* epilogue_) : epilogue(epilogue_) {}

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
      return finish_products<T, count>(sums, widened(bias), widened(scale), widened(residual), *epilogue);
    }

    const ProductEpilogue* epilogue;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord, int, ProblemShape) {
    return Callbacks(epilogue);
  }

  const ProductEpilogue* epilogue;
};

template <typename T>
struct ProductSm80 {
  using Element = CutlassElement<T>;
  using Tile = cutlass::gemm::GemmShape<128, 128, 32>;
  using WarpTile = cutlass::gemm::GemmShape<64, 64, 32>;
  using Instruction = cutlass::gemm::GemmShape<16, 8, 16>;
  static constexpr int stages = 4;

  using Threads = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, WarpTile, Element, product_alignment, 1>;
  using RowStride = cute::Stride<cute::_0, cute::_1, int64_t>;
  using MatrixStride = cute::Stride<int64_t, cute::_1, int64_t>;
  using Row = cutlass::epilogue::threadblock::VisitorRowBroadcast<Threads, Element, RowStride>;
  using Residual = OptionalLoad<cutlass::epilogue::threadblock::VisitorAuxLoad<Threads, Element, MatrixStride>>;
  using Store = cutlass::epilogue::threadblock::
      VisitorAuxStore<Threads, Element, cutlass::FloatRoundStyle::round_to_nearest, MatrixStride>;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      Store,
      cutlass::epilogue::threadblock::
          Sm80EVT<FinishSm80<T>, cutlass::epilogue::threadblock::VisitorAccFetch, Row, Row, Residual>>;
  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      Element,
      cutlass::layout::RowMajor,
      cutlass::ComplexTransform::kNone,
      product_alignment,
      Element,
      cutlass::layout::ColumnMajor,
      cutlass::ComplexTransform::kNone,
      product_alignment,
      Element,
      cutlass::layout::RowMajor,
      product_alignment,
      float,
      float,
      cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80,
      Tile,
      WarpTile,
      Instruction,
      Tree,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>,
      stages,
      cutlass::arch::OpMultiplyAdd>::GemmKernel;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

  static typename Gemm::Arguments arguments(const Product& p) {
    const auto matrix = [&](int64_t length) { return MatrixStride{length, cute::_1{}, int64_t(0)}; };
    const typename Tree::Arguments tree{
        {{},
         {static_cast<const Element*>(p.bias), Element(0), {}},
         {static_cast<const Element*>(p.scale), Element(1), {}},
         {const_cast<Element*>(static_cast<const Element*>(p.residual)), Element(0), matrix(p.columns)},
         p.epilogue},
        {static_cast<Element*>(p.out), matrix(p.columns)}};
    return {
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.rows, p.columns, p.depth},
        1,
        tree,
        p.x,
        p.weight,
        nullptr,
        nullptr,
        0,
        0,
        0,
        0,
        p.depth,
        p.depth,
        0,
        0};
  }

  static void launch(const Product& product, Stream stream) { run_cutlass<Gemm>(arguments(product), stream); }
};

template <typename T>
void launch_product_sm80(const Product& product, Stream stream) {
  ProductSm80<T>::launch(product, stream);
}

}  // namespace vitfast
