// From the arguments of upsample_relations to the instance of its kernel.

#pragma once

#include <stdexcept>

#include "csrc/cuda/launch.cuh"
#include "csrc/upsample_relations/upsample_relations_kernel.cuh"

namespace vitfast {

constexpr int relation_wide = 4, relation_narrow = 1;  // columns of a lane
constexpr int relation_max_bytes = 227 * 1024;         // of shared memory, on the largest GPU
constexpr int relation_max_coarse = 1024;              // above what any type has room for

// what vitfast/ops/upsample_relations.py asks a GPU for
static_assert(RelationPanel<float, relation_narrow>::bytes(197) <= 4 * 197 * 197 + 144 * 197 + 16);
static_assert(RelationPanel<Half, relation_narrow>::bytes(50) <= 2 * 50 * 51 + 144 * 50 + 16);

inline void check_relation_blocks(int64_t blocks) {
  if (blocks > INT32_MAX) {
    throw std::runtime_error("upsample_relations: the CUDA kernel takes up to 2^31 - 1 panels of 32 columns");
  }
}

template <typename T, int lane_columns>
void launch_upsample_relations_instance(const UpsampleRelationsOnDevice& a, Stream stream) {
  using Panel = RelationPanel<T, lane_columns>;
  const int64_t groups = a.groups.groups(), heads = a.images * a.heads;
  const int64_t listing_blocks = (groups + relation_warps - 1) / relation_warps;
  // every block brings its x: a head is parted only where there are too few heads for a large GPU
  constexpr int64_t enough_blocks = 2 * 132;
  const int64_t panels = (a.groups.fine + Panel::columns - 1) / Panel::columns;
  const int64_t wanted = (enough_blocks + heads - 1) / heads;
  const int64_t parts = wanted < panels ? wanted : panels;
  check_relation_blocks(listing_blocks);
  check_relation_blocks(heads * parts);
  launch(list_relations_kernel, listing_blocks, relation_threads, 0, stream, a.groups, groups);
  const auto kernel = upsample_relations_kernel<T, lane_columns>;
  launch(kernel, heads * parts, relation_threads, Panel::bytes(a.groups.coarse), stream, a, parts);
}

// T: float, Half or BFloat16. There is at least one result, and a column of the matrix.
template <typename T>
void launch_upsample_relations(const UpsampleRelationsOnDevice& a, Stream stream) {
  constexpr int two_blocks_bytes = 113 * 1024;  // two such blocks share a multiprocessor of sm_90
  const int coarse = a.groups.coarse;
  if (coarse > relation_max_coarse || RelationPanel<T, relation_narrow>::bytes(coarse) > relation_max_bytes) {
    throw std::runtime_error("upsample_relations: a head of x does not fit the shared memory of a block");
  }
  if (RelationPanel<T, relation_wide>::bytes(coarse) <= two_blocks_bytes) {
    return launch_upsample_relations_instance<T, relation_wide>(a, stream);
  }
  launch_upsample_relations_instance<T, relation_narrow>(a, stream);
}

}  // namespace vitfast
