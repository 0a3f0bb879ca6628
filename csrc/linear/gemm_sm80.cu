// GEMMs for compute capability 8.0 and newer: CUTLASS 2.x, cp.async tile copies, mma.sync.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_base.h>
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/cutlass.cuh"

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

  template <template <typename> class Function>
  using Compute = cutlass::epilogue::threadblock::VisitorCompute<Function, float, float, nearest>;
  template <class... Nodes>
  using Node = cutlass::epilogue::threadblock::Sm80EVT<Nodes...>;
  using Products = cutlass::epilogue::threadblock::VisitorAccFetch;
  using Sum = Node<Compute<cutlass::plus>, Products, Row>;

  static MatrixStride rows_of(int length) { return {length, cute::_1{}, int64_t(0)}; }
  static Element* elements(const void* address) { return const_cast<Element*>(static_cast<const Element*>(address)); }
};

// Tree node that passes its input through and writes the tile's column sums to its row of `partial_sums` [row tiles,
// columns]. A thread visits eight columns of every few rows; shared memory combines the threads of a column.
template <typename T>
struct ColumnSumsSm80 : EpilogueNode<cutlass::epilogue::threadblock::detail::VisitorImpl2x<>, float*> {
  using Threads = typename TileSm80<T>::Threads;
  static constexpr int width = gemm_alignment, columns = TileSm80<T>::Tile::kN;
  static constexpr int groups = Threads::kThreads / (columns / width);
  static_assert(Threads::Iterations::kColumn == 1 && Threads::Detail::kAccessWidth == columns / width);
  static_assert(Threads::kThreads == columns);  // one thread per column in end_epilogue

  struct SharedStorage {
    alignas(16) float sums[groups][columns];
  };

  CUTLASS_HOST_DEVICE ColumnSumsSm80() {}
  CUTLASS_HOST_DEVICE ColumnSumsSm80(float* const& partial_sums_, const SharedStorage& storage)
      : partial_sums(partial_sums_), shared(const_cast<SharedStorage*>(&storage)) {}

  struct Callbacks : cutlass::epilogue::threadblock::detail::EmptyCallbacks {
    CUTLASS_DEVICE
    Callbacks(float* partial_sums_, SharedStorage* shared_, cutlass::gemm::GemmCoord tile, int thread_, int rows, int n)
        : partial_sums(partial_sums_),
          shared(shared_),
          thread(thread_),
          rows_left(rows - tile.m() * gemm_tile_rows),
          first_column(tile.n() * columns),
          all_columns(n),
          row_tile(tile.m()) {
      sums.clear();
    }

    template <typename Sum>
    CUTLASS_DEVICE cutlass::Array<float, width> visit(
        int step, int row, int, int, const cutlass::Array<Sum, width>&, const cutlass::Array<float, width>& results) {
      if (row_in_tile(step, row) < rows_left) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < width; ++i) sums[i] += results[i];
      }
      return results;
    }

    CUTLASS_DEVICE void end_epilogue() {
      constexpr int threads_in_row = columns / width;
      float* own = shared->sums[thread / threads_in_row] + thread % threads_in_row * width;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < width; ++i) own[i] = sums[i];
      __syncthreads();
      const int column = first_column + thread;
      if (column >= all_columns) return;
      partial_sums[int64_t(row_tile) * all_columns + column] = sum_groups<groups, columns>(shared->sums[0], thread);
    }

    CUTLASS_DEVICE int row_in_tile(int step, int row) const {
      const auto tile = cute::make_identity_tensor(cute::make_shape(gemm_tile_rows, columns, 1));
      const auto own = Threads::partition(tile, thread, cutlass::gemm::GemmCoord(0, 0, 0));
      const auto visits = cute::group_modes<2, 5>(own(cute::_0{}, cute::_, cute::_, cute::_, cute::_, cute::_));
      return cute::get<0>(visits(0, row, step));
    }

    float* partial_sums;
    SharedStorage* shared;
    int thread, rows_left, first_column, all_columns, row_tile;
    cutlass::Array<float, width> sums;
  };

  template <class ProblemShape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, ProblemShape problem) {
    return Callbacks(partial_sums, shared, tile, thread, int(cute::get<0>(problem)), int(cute::get<1>(problem)));
  }

  float* partial_sums = nullptr;
  SharedStorage* shared = nullptr;
};

template <typename T, GemmEpilogue epilogue>
struct GemmSm80 {
  using Leaves = TileSm80<T>;
  using Element = typename Leaves::Element;
  static constexpr bool is_linear = epilogue == GemmEpilogue::linear;
  static constexpr bool is_gradient = epilogue == GemmEpilogue::gelu_gradient;

  template <class... Nodes>
  using Node = typename Leaves::template Node<Nodes...>;
  using Finish = typename Leaves::template Compute<FinishGemm<T, epilogue>::template Function>;
  using Results = std::conditional_t<
      is_linear,
      Node<Finish, typename Leaves::Sum, typename Leaves::Row, Optional<typename Leaves::Load>>,
      std::conditional_t<
          is_gradient,
          Node<ColumnSumsSm80<T>, Node<Finish, typename Leaves::Products, typename Leaves::Load>>,
          Node<Finish, Node<Optional<typename Leaves::Store>, typename Leaves::Sum>>>>;
  using Tree = Node<typename Leaves::Store, Results>;
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
  static typename Results::Arguments result_arguments(const GemmArguments& p) {
    const auto rows = Leaves::rows_of(p.columns);
    const typename Leaves::Sum::Arguments sum{{}, {Leaves::elements(p.bias), Element(0), {}}, {}};
    if constexpr (is_linear)
      return {sum, {Leaves::elements(p.scale), Element(1), {}}, {Leaves::elements(p.source), Element(0), rows}, {}};
    if constexpr (is_gradient) return {{{}, {Leaves::elements(p.source), Element(0), rows}, {}}, p.partial_sums};
    if constexpr (!is_linear && !is_gradient) return {{sum, {Leaves::elements(p.sum), rows}}, {}};
  }

  static void launch(const GemmArguments& p, Stream stream) {
    using Gemm = cutlass::gemm::device::GemmUniversalBase<Kernel>;
    const typename Gemm::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.rows, p.columns, p.depth},
        1,
        {result_arguments(p), {Leaves::elements(p.out), Leaves::rows_of(p.columns)}},
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
};

template <typename T>
void launch_gemm_sm80(const GemmArguments& p, Stream stream) {
  with_epilogue(p.epilogue, [&](auto epilogue) { GemmSm80<T, epilogue>::launch(p, stream); });
}

template void launch_gemm_sm80<Half>(const GemmArguments&, Stream);
template void launch_gemm_sm80<BFloat16>(const GemmArguments&, Stream);

}  // namespace vitfast
