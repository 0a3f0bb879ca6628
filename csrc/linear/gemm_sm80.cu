// GEMMs for compute capability 8.0 and newer: CUTLASS 2.x, cp.async tile copies, mma.sync. All epilogue variants,
// those of the backward too, are selected at run time, so there is one kernel per type.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_base.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/cutlass.cuh"
#include "csrc/linear/gemm_epilogue.cuh"

namespace vitfast {

// Loads or stores a matrix in CUTLASS's epilogue tree, unless its address is null; what is not loaded is zero.
template <typename Access>
struct Optional : Access {
  using Access::Access;

  template <typename Always>
  struct Callbacks : Always {
    CUTLASS_DEVICE Callbacks(Always&& always, bool is_there_) : Always(always), is_there(is_there_) {
      cute::clear(Always::tC_rAux);
    }
    CUTLASS_DEVICE void begin_step(int step) {
      if (is_there) Always::begin_step(step);
    }
    CUTLASS_DEVICE void end_step(int step) {
      if (is_there) Always::end_step(step);
    }
    bool is_there;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape problem) {
    auto always = Access::get_callbacks(tile, thread, problem);
    return Callbacks<decltype(always)>(static_cast<decltype(always)&&>(always), Access::params_ptr->ptr_aux != nullptr);
  }
};

// Tile shape of the GEMMs and leaves of their epilogue trees.
template <typename T>
struct TileSm80 {
  using Element = CutlassElement<T>;
  using Tile = cutlass::gemm::GemmShape<gemm_tile_rows, 128, 32>;
  using WarpTile = cutlass::gemm::GemmShape<64, 64, 32>;
  static constexpr int stages = 4;

  using Threads = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, WarpTile, Element, gemm_alignment, 1>;
  using RowStride = cute::Stride<cute::_0, cute::_1, int64_t>;
  using MatrixStride = cute::Stride<int64_t, cute::_1, int64_t>;
  using Row = cutlass::epilogue::threadblock::VisitorRowBroadcast<Threads, Element, RowStride>;
  static constexpr auto nearest = cutlass::FloatRoundStyle::round_to_nearest;
  using Load = cutlass::epilogue::threadblock::VisitorAuxLoad<Threads, Element, MatrixStride>;
  using Store = cutlass::epilogue::threadblock::VisitorAuxStore<Threads, Element, nearest, MatrixStride>;
  using AddBias = cutlass::epilogue::threadblock::VisitorCompute<cutlass::plus, float, float, nearest>;

  static MatrixStride rows_of(int length) { return {length, cute::_1{}, int64_t(0)}; }
  static Element* elements(const void* address) { return const_cast<Element*>(static_cast<const Element*>(address)); }
};

struct FinishParams {
  GemmEpilogue epilogue;
  float* partial_sums;
};

// Tree node that calls finish_gemm and writes the tile's column sums to its row of `partial_sums` [row tiles, columns],
// unless that is null. A thread visits eight columns of every few rows; shared memory combines the threads of a column.
// CUTLASS's VisitorCompute cannot pass run-time arguments to its function.
template <typename T>
struct FinishSm80 : EpilogueNode<cutlass::epilogue::threadblock::detail::VisitorImpl2x<>, FinishParams> {
  using typename EpilogueNode<cutlass::epilogue::threadblock::detail::VisitorImpl2x<>, FinishParams>::Params;
  using Threads = typename TileSm80<T>::Threads;
  static constexpr int width = gemm_alignment, columns = TileSm80<T>::Tile::kN;
  static constexpr int groups = Threads::kThreads / (columns / width);
  static_assert(Threads::Iterations::kColumn == 1 && Threads::Detail::kAccessWidth == columns / width);
  static_assert(Threads::kThreads == columns);  // one thread per column in end_epilogue

  struct SharedStorage {
    alignas(16) float sums[groups][columns];
  };

  CUTLASS_HOST_DEVICE FinishSm80() {}
  CUTLASS_HOST_DEVICE FinishSm80(const Params& params_, const SharedStorage& storage)
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
          row_tile(tile.m()) {
      sums.clear();
    }

    template <typename Element>
    CUTLASS_DEVICE static cutlass::Array<float, width> widened(const cutlass::Array<Element, width>& values) {
      return cutlass::NumericArrayConverter<float, Element, width>{}(values);
    }

    template <typename Sum, typename Element>
    CUTLASS_DEVICE cutlass::Array<float, width> visit(
        int step,
        int row,
        int,
        int,
        const cutlass::Array<Sum, width>&,
        const cutlass::Array<float, width>& products,
        const cutlass::Array<Element, width>& scale,
        const cutlass::Array<Element, width>& source) {
      const auto results = finish_gemm<T, width>(products, widened(scale), widened(source), params->epilogue);
      if (params->partial_sums != nullptr && row_in_tile(step, row) < rows_left) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; ++i) sums[i] += results[i];
      }
      return results;
    }

    CUTLASS_DEVICE void end_epilogue() {
      if (params->partial_sums == nullptr) return;
      constexpr int threads_in_row = columns / width;
      float* own = shared->sums[thread / threads_in_row] + thread % threads_in_row * width;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < width; ++i) own[i] = sums[i];
      __syncthreads();
      const int column = first_column + thread;
      if (column >= all_columns) return;
      params->partial_sums[int64_t(row_tile) * all_columns + column] =
          sum_groups<groups, columns>(shared->sums[0], thread);
    }

    CUTLASS_DEVICE int row_in_tile(int step, int row) const {
      const auto tile = cute::make_identity_tensor(cute::make_shape(gemm_tile_rows, columns, 1));
      const auto own = Threads::partition(tile, thread, cutlass::gemm::GemmCoord(0, 0, 0));
      const auto visits = cute::group_modes<2, 5>(own(cute::_0{}, cute::_, cute::_, cute::_, cute::_, cute::_));
      return cute::get<0>(visits(0, row, step));
    }

    const Params* params;
    SharedStorage* shared;
    int thread, rows_left, first_column, all_columns, row_tile;
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
void launch_gemm_sm80(const GemmArguments& p, Stream stream) {
  using Leaves = TileSm80<T>;
  using Element = typename Leaves::Element;
  using Sum = cutlass::epilogue::threadblock::Sm80EVT<
      Optional<typename Leaves::Store>,
      cutlass::epilogue::threadblock::
          Sm80EVT<typename Leaves::AddBias, cutlass::epilogue::threadblock::VisitorAccFetch, typename Leaves::Row>>;
  using Tree = cutlass::epilogue::threadblock::Sm80EVT<
      typename Leaves::Store,
      cutlass::epilogue::threadblock::
          Sm80EVT<FinishSm80<T>, Sum, typename Leaves::Row, Optional<typename Leaves::Load>>>;
  using Kernel = typename cutlass::gemm::kernel::DefaultGemmWithVisitor<
      Element,
      cutlass::layout::RowMajor,
      cutlass::ComplexTransform::kNone,
      gemm_alignment,
      Element,
      cutlass::layout::ColumnMajor,
      cutlass::ComplexTransform::kNone,
      gemm_alignment,
      Element,
      cutlass::layout::RowMajor,
      gemm_alignment,
      float,
      float,
      cutlass::arch::OpClassTensorOp,
      cutlass::arch::Sm80,
      typename Leaves::Tile,
      typename Leaves::WarpTile,
      cutlass::gemm::GemmShape<16, 8, 16>,
      Tree,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>,
      Leaves::stages,
      cutlass::arch::OpMultiplyAdd>::GemmKernel;
  const typename Tree::Arguments tree{
      {{{{}, {Leaves::elements(p.bias), Element(0), {}}, {}}, {Leaves::elements(p.sum), Leaves::rows_of(p.columns)}},
       {Leaves::elements(p.scale), Element(1), {}},
       {Leaves::elements(p.source), Element(0), Leaves::rows_of(p.columns)},
       {p.epilogue, p.partial_sums}},
      {Leaves::elements(p.out), Leaves::rows_of(p.columns)}};
  using Gemm = cutlass::gemm::device::GemmUniversalBase<Kernel>;
  const typename Gemm::Arguments arguments{
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
  if (Gemm::get_workspace_size(arguments) != 0)
    throw std::runtime_error("linear: the CUTLASS kernel requires a workspace");
  Gemm gemm;
  check_cutlass(gemm.initialize(arguments, nullptr, stream));
  check_cutlass(gemm.run(stream));
}

template void launch_gemm_sm80<Half>(const GemmArguments&, Stream);
template void launch_gemm_sm80<BFloat16>(const GemmArguments&, Stream);

}  // namespace vitfast
