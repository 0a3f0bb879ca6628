// GEMMs for compute capability 8.0 and newer: CUTLASS 2.x, cp.async tile copies, mma.sync. All epilogue variants are
// selected at run time, so there is one forward and one gradient kernel per type.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/cutlass.cuh"
#include "csrc/linear/gemm_epilogue.cuh"

namespace vitfast {

// Loads the residual in CUTLASS's epilogue tree; reads nothing if there is none.
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

template <typename Arguments>
using NodeSm80 = EpilogueNode<cutlass::epilogue::threadblock::detail::VisitorImpl2x<>, Arguments>;

// Tree node that calls apply_epilogue. CUTLASS's VisitorCompute cannot pass run-time arguments to its function.
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

// Tile shape of the GEMMs and leaves of their epilogue trees.
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

// GEMM with epilogue `Tree`. WeightLayout: layout of the weight as a matrix [depth, N].
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

  // `weight_stride`: leading dimension of the weight.
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
void launch_gemm_sm80(const GemmArguments& p, Stream stream) {
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

// --- backward: row-major weight, epilogue that reads the pre-activation ---

struct EpilogueGradientParams {
  EpilogueActivation activation;
  float* partial_sums;
};

// Tree node that calls apply_epilogue_gradient and writes the tile's column sums to its row of `partial_sums` [row
// tiles, columns]. A thread visits eight columns of every few rows; shared memory combines the threads of a column.
template <typename T>
struct GradientSm80 : NodeSm80<EpilogueGradientParams> {
  using Threads = typename TileSm80<T>::Threads;
  static constexpr int width = gemm_alignment, columns = TileSm80<T>::Tile::kN;
  static constexpr int groups = Threads::kThreads / (columns / width);
  static_assert(Threads::Iterations::kColumn == 1 && Threads::Detail::kAccessWidth == columns / width);
  static_assert(Threads::kThreads == columns);  // one thread per column in end_epilogue

  struct SharedStorage {
    alignas(16) float sums[groups][columns];
  };

  CUTLASS_HOST_DEVICE GradientSm80() {}
  CUTLASS_HOST_DEVICE GradientSm80(const Params& params_, const SharedStorage& storage)
      : params(&params_), shared(const_cast<SharedStorage*>(&storage)) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE
    Callbacks(
        const Params* params_, SharedStorage* shared_, cutlass::gemm::GemmCoord tile, int thread_, int rows, int n)
        : params(params_),
          shared(shared_),
          thread(thread_),
          rows_left(rows - tile.m() * gemm_tile_rows),
          first_column(tile.n() * columns),
          all_columns(n),
          target(params_->partial_sums + int64_t(tile.m()) * n + first_column) {
      sums.clear();
    }

    template <typename Sum, typename Element>
    CUTLASS_DEVICE cutlass::Array<float, width> visit(
        int step,
        int row,
        int,
        int,
        const cutlass::Array<Sum, width>&,
        const cutlass::Array<Sum, width>& products,
        const cutlass::Array<Element, width>& pre_activation) {
      const auto inputs = cutlass::NumericArrayConverter<float, Element, width>{}(pre_activation);
      const auto gradient = apply_epilogue_gradient<T, width>(products, inputs, params->activation);
      if (row_in_tile(step, row) < rows_left) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; ++i) sums[i] += gradient[i];
      }
      return gradient;
    }

    CUTLASS_DEVICE void end_epilogue() {
      constexpr int threads_in_row = columns / width;
      float* own = shared->sums[thread / threads_in_row] + thread % threads_in_row * width;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < width; ++i) own[i] = sums[i];
      __syncthreads();
      if (first_column + thread < all_columns) target[thread] = sum_groups<groups, columns>(shared->sums[0], thread);
    }

    CUTLASS_DEVICE int row_in_tile(int step, int row) const {
      const auto tile = cute::make_identity_tensor(cute::make_shape(gemm_tile_rows, columns, 1));
      const auto own = Threads::partition(tile, thread, cutlass::gemm::GemmCoord(0, 0, 0));
      const auto visits = cute::group_modes<2, 5>(own(cute::_0{}, cute::_, cute::_, cute::_, cute::_, cute::_));
      return cute::get<0>(visits(0, row, step));
    }

    const Params* params;
    SharedStorage* shared;
    int thread, rows_left, first_column, all_columns;
    float* target;  // the tile's row of partial sums, from its first column on
    cutlass::Array<float, width> sums;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape problem) {
    return Callbacks(params, shared, tile, thread, int(cute::get<0>(problem)), int(cute::get<1>(problem)));
  }

  const Params* params;
  SharedStorage* shared;
};

template <typename T>
void launch_gemm_sm80(const GemmGradientArguments& p, Stream stream) {
  using Leaves = TileSm80<T>;
  using Element = typename Leaves::Element;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      typename Leaves::Store,
      cutlass::epilogue::threadblock::
          Sm80EVT<GradientSm80<T>, cutlass::epilogue::threadblock::VisitorAccFetch, typename Leaves::Load>>;
  const typename Tree::Arguments tree{
      {{},
       {Leaves::elements(p.pre_activation), Element(0), Leaves::rows_of(p.columns)},
       {p.activation, p.partial_sums}},
      {Leaves::elements(p.out), Leaves::rows_of(p.columns)}};
  using Gemm = GemmSm80<T, cutlass::layout::RowMajor, Tree>;
  Gemm::launch({p.rows, p.columns, p.depth}, tree, p.grad, p.weight, p.columns, stream);
}

// The build compiles this file once per element type and kind of arguments (build_backend/vitfast_build/sources.py).
template void launch_gemm_sm80<VITFAST_GEMM_TYPE>(const VITFAST_GEMM_ARGUMENTS&, Stream);

}  // namespace vitfast
