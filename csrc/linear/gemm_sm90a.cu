// GEMMs for compute capability 9.0: CUTLASS 3.x, warp-specialized. One producer warp copies tiles by TMA; two consumer
// warp groups run wgmma and the epilogue while the next tiles are loaded. All epilogue variants are selected at run
// time, so there is one kernel per type and tile.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "csrc/linear/column_sums.cuh"
#include "csrc/linear/cutlass.cuh"
#include "csrc/linear/gemm_epilogue.cuh"

namespace vitfast {

// Fetches the residual, if there is one.
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

// Root of the tree: calls apply_epilogue.
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

// GEMM with epilogue `Tree` and output tiles of 128 x `columns`, in depth steps of 64. Two adjacent blocks share the
// weight tile by multicast. WeightLayout: layout of the weight as a matrix [depth, N].
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
void launch_gemm_sm90a_tile(const GemmArguments& p, Stream stream) {
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

// Widths of ViTs are multiples of 192 (ViT-Ti, S, B) or 256 (B, L). The larger tile reads less and is used wherever it
// leaves no remainder.
template <typename T>
void launch_gemm_sm90a(const GemmArguments& p, Stream stream) {
  if (p.columns % 256 == 0) return launch_gemm_sm90a_tile<T, 256>(p, stream);
  launch_gemm_sm90a_tile<T, 192>(p, stream);
}

// --- backward: row-major weight, epilogue that reads the pre-activation as the forward reads a residual ---

template <typename T>
struct GradientSm90 {
  template <typename Values>
  struct Function {
    using Arguments = EpilogueActivation;
    CUTLASS_DEVICE Values
    operator()(const Values& sums, const Values& pre_activation, const Arguments& activation) const {
      return apply_epilogue_gradient<T, Values::kElements>(sums, pre_activation, activation);
    }
  };
};

// Tree node that passes its input through and writes the tile's column sums to its row of `partial_sums` [row tiles,
// columns]. Sums of warps are double-buffered: one buffer is written for the next 32 columns while the other is read.
struct ColumnSumsSm90 : EpilogueNode<cutlass::epilogue::fusion::Sm90VisitorImpl<>, float*> {
  static constexpr int warps = gemm_tile_rows / 16;
  struct SharedStorage {
    float sums[2][warps][column_sum_columns];
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
        const cutlass::Array<Sum, count>&, int, int, int epi_n, const cutlass::Array<float, count>& values) {
      static_assert(count == column_sum_values);
      sum_fragment_columns(shared->sums[epi_n % 2][thread / warp_size], values, rows_left, thread % warp_size);
      return values;
    }

    // CUTLASS synchronizes the threads between visit and end_loop
    CUTLASS_DEVICE void end_loop(int, int epi_n) {
      const int column = epi_n * column_sum_columns + thread;
      if (thread >= column_sum_columns || column >= columns_left) return;
      partial_sums[column] = sum_groups<warps, column_sum_columns>(shared->sums[epi_n % 2][0], thread);
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

// Hidden widths of ViTs are multiples of 256.
template <typename T>
void launch_gemm_sm90a(const GemmGradientArguments& p, Stream stream) {
  using Element = CutlassElement<T>;
  using Tree = cutlass::epilogue::fusion::Sm90EVT<
      ColumnSumsSm90,
      cutlass::epilogue::fusion::Sm90EVT<
          cutlass::epilogue::fusion::
              Sm90Compute<GradientSm90<T>::template Function, float, float, cutlass::FloatRoundStyle::round_to_nearest>,
          cutlass::epilogue::fusion::Sm90AccFetch,
          cutlass::epilogue::fusion::Sm90SrcFetch<Element>>>;
  using Gemm = GemmSm90a<T, 256, cutlass::layout::RowMajor, Tree>;
  Gemm::launch(
      {cutlass::gemm::GemmUniversalMode::kGemm,
       {p.rows, p.columns, p.depth, 1},
       {Gemm::elements(p.grad),
        Gemm::rows_of(p.depth),
        Gemm::elements(p.weight),
        cute::make_stride(cute::_1{}, int64_t(p.columns), int64_t(0))},
       {{{{}, {}, p.activation}, p.partial_sums},
        Gemm::elements(p.pre_activation),
        Gemm::rows_of(p.columns),
        static_cast<Element*>(p.out),
        Gemm::rows_of(p.columns)}},
      stream);
}

// The build compiles this file once per element type and kind of arguments (build_backend/vitfast_build/sources.py).
template void launch_gemm_sm90a<VITFAST_GEMM_TYPE>(const VITFAST_GEMM_ARGUMENTS&, Stream);

}  // namespace vitfast
