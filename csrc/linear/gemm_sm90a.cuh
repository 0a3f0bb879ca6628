// GEMMs for compute capability 9.0: CUTLASS 3.x, warp-specialized, with the ping-pong schedule. One producer warp
// copies tiles by TMA; two consumer warp groups compute a tile each, in turn: while one runs its epilogue, the other
// runs wgmma.
//
// CUTLASS's collective builders would choose the same types, but their headers double what is compiled.

#pragma once

#include <cutlass/cutlass.h>

// declared here, because the header with the definition includes those of every other architecture
namespace cutlass::epilogue::collective {
template <class DispatchPolicy, class... Arguments>
class CollectiveEpilogue;
}
#include <cutlass/arch/reg_reconfig.h>

// CUTLASS leaves 232 registers to a thread of a consumer, with which a tile's 192 sums spill, and 40 to a producer's.
// 240 and 24 are what it chooses for larger tiles.
namespace cutlass::arch {
template <>
CUTLASS_DEVICE void warpgroup_reg_alloc<232>() {
  warpgroup_reg_alloc<240>();
}
template <>
CUTLASS_DEVICE void warpgroup_reg_dealloc<40>() {
  warpgroup_reg_dealloc<24>();
}
}  // namespace cutlass::arch
#include <cutlass/device_kernel.h>
#include <cutlass/cluster_launch.hpp>
#include <cutlass/epilogue/collective/sm90_epilogue_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_mma_decl.hpp>
#include <cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp>
#include <cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp>

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/cutlass.cuh"

namespace vitfast {

// Fetches the source, if there is one; otherwise it is zero.
template <typename Element>
struct OptionalSource : EpilogueNode<cutlass::epilogue::fusion::Sm90SrcFetch<Element>, bool> {
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

// Root of the tree: passes its input through and writes the tile's column sums to its row of `partial_sums` [row tiles,
// columns]. The epilogue processes 64 rows of 32 columns at a time, and then the other 64 rows.
struct ColumnSumsSm90 : EpilogueNode<cutlass::epilogue::fusion::Sm90VisitorImpl<>, float*> {
  static constexpr int step_rows = 64, steps = gemm_tile_rows / step_rows, warps = step_rows / 16;
  struct SharedStorage {
    float sums[steps * warps][column_sum_columns];
  };

  CUTLASS_HOST_DEVICE ColumnSumsSm90() {}
  CUTLASS_HOST_DEVICE ColumnSumsSm90(float* const& partial_sums_, const SharedStorage& storage)
      : partial_sums(partial_sums_), shared(const_cast<SharedStorage*>(&storage)) {}

  // Whether a thread's values have the order that sum_fragment_columns assumes. Layout: maps the index of a value to
  // its coordinates relative to the first one.
  template <typename Layout>
  static constexpr bool has_fragment_order() {
    for (int i = 0; i < column_sum_values; ++i) {
      const auto place = Layout{}(i);
      if (int(cute::get<0>(place)) != i / 2 % 2 * 8 || int(cute::get<1>(place)) != i / 4 * 8 + i % 2) return false;
    }
    return true;
  }

  struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
    CUTLASS_DEVICE Callbacks(
        SharedStorage* shared_, float* partial_sums_, int thread_, int rows_left_, int columns_left_)
        : shared(shared_),
          partial_sums(partial_sums_),
          thread(thread_),
          rows_left(rows_left_),
          columns_left(columns_left_) {}

    template <typename Sum, int count>
    CUTLASS_DEVICE cutlass::Array<float, count> visit(
        const cutlass::Array<Sum, count>&, int, int, int, const cutlass::Array<float, count>& values) {
      return values;
    }

    template <typename Buffer, typename Synchronize, typename Results>
    CUTLASS_DEVICE void reduce(Buffer&&, const Synchronize&, int step, int, bool, Results& results) {
      static_assert(decltype(cute::size(results))::value == 1);
      float* sums = shared->sums[step * warps + thread / warp_size];
      sum_fragment_columns(sums, results(0), rows_left - step * step_rows, thread % warp_size);
    }

    // CUTLASS synchronizes the threads before and after tma_store
    CUTLASS_DEVICE void tma_store(int step, int epi_n, int, bool) {
      const int column = epi_n * column_sum_columns + thread;
      if (step + 1 < steps || thread >= column_sum_columns || column >= columns_left) return;
      partial_sums[column] = sum_groups<steps * warps, column_sum_columns>(shared->sums[0], thread);
    }

    SharedStorage* shared;
    float* partial_sums;  // of the tile's columns
    int thread, rows_left, columns_left;
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(
      const cutlass::epilogue::fusion::detail::ConsumerStoreArgs<Args...>& arguments) {
    static_assert(has_fragment_order<decltype(arguments.tCcD.layout())>());
    const auto [row_tile, column_tile, depth_tile, batch] = arguments.tile_coord_mnkl;
    const int columns = cute::get<1>(arguments.problem_shape_mnkl);
    const int first_column = column_tile * int(cute::size<1>(arguments.tile_shape_mnk));
    // the second block of the last cluster may have no rows
    const bool has_rows = cute::get<0>(arguments.residue_cD) > 0;
    return Callbacks(
        shared,
        partial_sums + int64_t(row_tile) * columns + first_column,
        arguments.thread_idx,
        int(cute::get<0>(arguments.residue_tCcD)),
        has_rows ? columns - first_column : 0);
  }

  float* partial_sums = nullptr;
  SharedStorage* shared = nullptr;
};

// GEMM with output tiles of 128 x 192, in depth steps of 64: the largest tile whose sums fit the registers of one warp
// group. 192 divides most widths of ViTs. The gradient's column sums need registers, too: its tiles have 128 columns.
// Two adjacent blocks share the weight tile by multicast.
template <typename T, GemmEpilogue epilogue>
struct GemmSm90a {
  using Element = CutlassElement<T>;
  static constexpr bool is_linear = epilogue == GemmEpilogue::linear;
  static constexpr bool is_gradient = epilogue == GemmEpilogue::gelu_gradient;
  static constexpr bool has_source = is_linear || is_gradient;
  using Tile = cute::Shape<cute::Int<gemm_tile_rows>, cute::Int<is_gradient ? 128 : 192>, cute::_64>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using Stride = cute::Stride<int64_t, cute::_1, int64_t>;  // of row-major matrices, and of the batch
  static constexpr auto depth_major = cute::GMMA::Major::K;

  // four buffers for source and result, of which two are being stored
  static constexpr int buffers = 4, stored_buffers = 2;
  using EpilogueTile = cute::Shape<cute::Int<ColumnSumsSm90::step_rows>, cute::Int<column_sum_columns>>;
  using EpilogueLayout = cute::GMMA::Layout_K_SW64_Atom<Element>;
  static constexpr auto nearest = cutlass::FloatRoundStyle::round_to_nearest;

  static constexpr int epilogue_values = column_sum_values;  // that a thread finishes at a time: its part of a tile

  template <template <typename> class Function>
  using Compute = cutlass::epilogue::fusion::Sm90Compute<Function, float, float, nearest>;
  template <class... Nodes>
  using Node = cutlass::epilogue::fusion::Sm90EVT<Nodes...>;
  using Finish = Compute<FinishGemm<T, epilogue>::template Function>;
  using Products = cutlass::epilogue::fusion::Sm90AccFetch;
  using Source = cutlass::epilogue::fusion::Sm90SrcFetch<Element>;
  using Row = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, Element>;
  using StoreSum = cutlass::epilogue::fusion::Sm90AuxStore<
      stored_buffers,
      EpilogueTile,
      Element,
      nearest,
      Stride,
      EpilogueLayout,
      cute::SM90_U32x4_STSM_N,
      gemm_alignment,
      true>;
  using Sum = Node<Compute<cutlass::plus>, Products, Row>;
  using Tree = std::conditional_t<
      is_linear,
      Node<Finish, Sum, Row, OptionalSource<Element>>,
      std::conditional_t<
          is_gradient,
          Node<ColumnSumsSm90, Node<Finish, Products, Source>>,
          Node<Finish, Node<StoreSum, Sum>>>>;

  using Epilogue = cutlass::epilogue::collective::CollectiveEpilogue<
      cutlass::epilogue::Sm90TmaWarpSpecialized<buffers, stored_buffers, epilogue_values, has_source, false>,
      Tile,
      EpilogueTile,
      std::conditional_t<has_source, Element, void>,
      Stride,
      Element,
      Stride,
      Tree,
      cute::SM90_TMA_LOAD,
      EpilogueLayout,
      cute::SM75_U32x4_LDSM_N,
      cute::SM90_TMA_STORE,
      EpilogueLayout,
      cute::SM90_U32x4_STSM_N,
      cute::Copy_Atom<cute::SM90_U32x4_STSM_N, cutlass::half_t>,
      void>;

  using Instruction = decltype(cute::GMMA::ss_op_selector<Element, Element, float, Tile, depth_major, depth_major>());
  using WarpGroups = cute::Layout<cute::Shape<cute::_1, cute::_1, cute::_1>>;
  using SharedLayout = cute::GMMA::Layout_K_SW128_Atom<Element>;
  static constexpr int stages = 5;
  using Mainloop = cutlass::gemm::collective::CollectiveMma<
      cutlass::gemm::
          MainloopSm90TmaGmmaWarpSpecialized<stages, Cluster, cutlass::gemm::KernelTmaWarpSpecializedPingpong>,
      Tile,
      Element,
      Stride,
      Element,
      Stride,
      decltype(cute::make_tiled_mma(Instruction{}, WarpGroups{})),
      cute::SM90_TMA_LOAD,
      SharedLayout,
      void,
      cute::identity,
      cute::SM90_TMA_LOAD_MULTICAST,
      SharedLayout,
      void,
      cute::identity>;

  using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;

  static Stride rows_of(int length) { return {int64_t(length), cute::_1{}, int64_t(0)}; }
  static const Element* elements(const void* address) { return static_cast<const Element*>(address); }

  static typename Tree::Arguments tree_arguments(const GemmArguments& p) {
    const typename Sum::Arguments sum{{}, {elements(p.bias), Element(0), {}}, {}};
    if constexpr (is_linear) return {sum, {elements(p.scale), Element(1), {}}, p.source != nullptr, {}};
    if constexpr (is_gradient) return {{{}, {}, {}}, p.partial_sums};
    if constexpr (!has_source) return {{sum, {static_cast<Element*>(p.sum), rows_of(p.columns)}}, {}};
  }

  static void launch(const GemmArguments& p, Stream stream) {
    static_assert(Kernel::SharedStorageSize <= 227 * 1024);
    cutlass::KernelHardwareInfo hardware;
    check_cuda(cudaGetDevice(&hardware.device_id));
    check_cuda(cudaDeviceGetAttribute(&hardware.sm_count, cudaDevAttrMultiProcessorCount, hardware.device_id));
    // a tensor map needs an address, even if it is never read
    const void* source = p.source != nullptr ? p.source : p.out;
    const typename Kernel::Arguments arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.rows, p.columns, p.depth, 1},
        {elements(p.x), rows_of(p.depth), elements(p.weight), rows_of(p.depth)},
        {tree_arguments(p), elements(source), rows_of(p.columns), static_cast<Element*>(p.out), rows_of(p.columns)},
        hardware};
    if (Kernel::get_workspace_size(arguments) != 0)
      throw std::runtime_error("linear: the CUTLASS kernel requires a workspace");
    auto parameters = Kernel::to_underlying_arguments(arguments, nullptr);
    const auto kernel = cutlass::device_kernel<Kernel>;
    const int bytes = Kernel::SharedStorageSize;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    void* kernel_arguments[] = {&parameters};
    check_cutlass(
        cutlass::ClusterLauncher::launch(
            Kernel::get_grid_shape(parameters),
            {cute::size<0>(Cluster{}), 1, 1},
            Kernel::get_block_shape(),
            bytes,
            stream,
            reinterpret_cast<const void*>(kernel),
            kernel_arguments));
    check_cuda(cudaGetLastError());
  }
};

template <typename T>
void launch_gemm_sm90a(const GemmArguments& p, Stream stream) {
  with_epilogue(p.epilogue, [&](auto epilogue) { GemmSm90a<T, epilogue>::launch(p, stream); });
}

}  // namespace vitfast
