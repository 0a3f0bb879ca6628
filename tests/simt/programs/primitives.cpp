// One small kernel for each primitive of csrc/cuda. The places of fragments are written here as the PTX ISA states them
// (section "Matrix Fragments for mma.m16n8k16 with floating point type"), apart from the emulation.

#include "csrc/cuda/matrix.cuh"
#include "csrc/cuda/numbers.cuh"
#include "csrc/cuda/pack.cuh"
#include "csrc/cuda/shared_memory.cuh"
#include "csrc/cuda/threads.cuh"
#include "tests/simt/programs/program.h"

using namespace vitfast;
using simt_test::Program;

// matrices [4][8][8] of 16 bits -> registers [32][4]
__global__ void ldmatrix_kernel(const uint16_t* matrices, uint32_t* registers, int transposed) {
  SharedMemory shared;
  uint16_t* tile = shared.take<uint16_t>(4 * 64);
  const int lane = lane_in_warp();
  store_pack(tile + lane * 8, load_pack(matrices + lane * 8));
  sync_warp();
  uint32_t loaded[4];
  if (transposed) {
    ldmatrix_x4_transposed(loaded, tile + lane * 8);
  } else {
    ldmatrix_x4(loaded, tile + lane * 8);
  }
  for (int m = 0; m < 4; ++m) registers[lane * 4 + m] = loaded[m];
}

// The eight elements of A and four of B that a lane holds.
template <typename T>
struct Fragments {
  uint32_t a[4], b[2];

  __device__ Fragments(const T* a_matrix, const T* b_matrix, int lane) {
    const int group_id = lane >> 2, thread_in_group = lane % 4;
    for (int i = 0; i < 8; i += 2) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group_id : group_id + 8;
      const int column = thread_in_group * 2 + (i < 4 ? 0 : 8);
      a[i / 2] = uint32_t(a_matrix[row * 16 + column].bits) | uint32_t(a_matrix[row * 16 + column + 1].bits) << 16;
    }
    for (int i = 0; i < 4; i += 2) {
      const int row = thread_in_group * 2 + (i < 2 ? 0 : 8), column = group_id;
      b[i / 2] = uint32_t(b_matrix[row * 8 + column].bits) | uint32_t(b_matrix[(row + 1) * 8 + column].bits) << 16;
    }
  }
};

// d [16][8] = a [16][16] b [16][8] + c [16][8]
template <typename T>
__global__ void mma_kernel(const T* a, const T* b, const float* c, float* d) {
  const int lane = lane_in_warp();
  const Fragments<T> fragments(a, b, lane);
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[((lane >> 2) + (i < 2 ? 0 : 8)) * 8 + lane % 4 * 2 + i % 2];
  mma_m16n8k16<T>(sums, fragments.a, fragments.b[0], fragments.b[1]);
  for (int i = 0; i < 4; ++i) d[((lane >> 2) + (i < 2 ? 0 : 8)) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// The same with sums in half, of a tile for each block.
__global__ void mma_fp16_accumulation_kernel(const Half* a, const Half* b, const Half* c, Half* d) {
  const int lane = lane_in_warp(), tile = int(blockIdx.x);
  const Fragments<Half> fragments(a + tile * 256, b + tile * 128, lane);
  const int place = tile * 128 + (lane >> 2) * 8 + lane % 4 * 2;
  uint32_t sums[2];
  for (int i = 0; i < 2; ++i) {
    sums[i] = uint32_t(c[place + 64 * i].bits) | uint32_t(c[place + 64 * i + 1].bits) << 16;
  }
  mma_m16n8k16_fp16_accumulation(sums, fragments.a, fragments.b[0], fragments.b[1]);
  for (int i = 0; i < 2; ++i) {
    d[place + 64 * i] = {uint16_t(sums[i])};
    d[place + 64 * i + 1] = {uint16_t(sums[i] >> 16)};
  }
}

// x [64][4] -> y [64][4], rows reversed, row 63 - i where i % 3 == 0 zero; in two groups of copies
__global__ void copy_async_kernel(const float* x, float* y) {
  SharedMemory shared;
  float* rows = shared.take<float>(64 * 4);
  const int thread = int(threadIdx.x);
  for (int i = thread; i < 64; i += 32) {
    copy_async(rows + i * 4, x + i * 4, i % 3 != 0);
    commit_copies();
  }
  wait_for_copies<1>();
  wait_for_copies<0>();
  sync_threads();
  for (int i = thread; i < 64; i += 32) store_pack(y + i * 4, load_pack(rows + (63 - i) * 4));
}

// x [32] -> y [4][32]: sums and maxima over 4 and over 32 lanes
__global__ void reduce_kernel(const float* x, float* y) {
  const int lane = lane_in_warp();
  y[lane] = sum_over<4>(x[lane]);
  y[32 + lane] = sum_over<32>(x[lane]);
  y[64 + lane] = maximum_over<4>(x[lane]);
  y[96 + lane] = maximum_over<32>(x[lane]);
}

// x [32] -> y [2][32]: how many lanes below, and how many at all, have a positive number
__global__ void votes_kernel(const float* x, float* y) {
  const int lane = lane_in_warp();
  const Votes votes = count_votes(x[lane] > 0.0f);
  y[lane] = float(votes.below);
  y[32 + lane] = float(votes.all);
}

// x [count] -> bits of half, bfloat16 and of a pair of each; and back
__global__ void numbers_kernel(const float* x, uint16_t* half, uint16_t* bfloat, float* back, int count) {
  for (int i = int(threadIdx.x); i < count; i += 32) {
    half[i] = round_to<Half>(x[i]).bits;
    bfloat[i] = uint16_t(round_to_pair<BFloat16>(0.0f, x[i]) >> 16);
    const bool same = round_to<BFloat16>(x[i]).bits == bfloat[i];
    back[2 * i] = to_float(Half{uint16_t(round_to_pair<Half>(x[i], 1.0f) & 0xffff)});
    back[2 * i + 1] = same ? to_float(BFloat16{bfloat[i]}) : 0.0f;
  }
}

int main(int argc, char** argv) {
  Program program(argc, argv);
  const std::string name = program.text("kernel");
  if (name == "ldmatrix") {
    auto* registers = program.output<uint32_t>("registers", 128);
    const int transposed = int(program.integer("transposed"));
    launch(ldmatrix_kernel, 1, 32, 512, {}, program.input<const uint16_t>("matrices"), registers, transposed);
  } else if (name == "mma") {
    const auto* c = program.input<const float>("c");
    float* d = program.output<float>("d", 128);
    const std::string type = program.text("type");
    if (type == "bfloat16") {
      const auto *a = program.input<const BFloat16>("a"), *b = program.input<const BFloat16>("b");
      launch(mma_kernel<BFloat16>, 1, 32, 0, {}, a, b, c, d);
    } else {
      const auto *a = program.input<const Half>("a"), *b = program.input<const Half>("b");
      launch(mma_kernel<Half>, 1, 32, 0, {}, a, b, c, d);
    }
  } else if (name == "fp16_accumulation") {
    const int64_t tiles = program.integer("tiles");
    const auto *a = program.input<const Half>("a"), *b = program.input<const Half>("b");
    const auto* c = program.input<const Half>("c");
    launch(mma_fp16_accumulation_kernel, tiles, 32, 0, {}, a, b, c, program.output<Half>("d", tiles * 128));
  } else if (name == "copy_async") {
    launch(copy_async_kernel, 1, 32, 1024, {}, program.input<const float>("x"), program.output<float>("y", 256));
  } else if (name == "reduce") {
    launch(reduce_kernel, 1, 32, 0, {}, program.input<const float>("x"), program.output<float>("y", 128));
  } else if (name == "votes") {
    launch(votes_kernel, 1, 32, 0, {}, program.input<const float>("x"), program.output<float>("y", 64));
  } else if (name == "numbers") {
    const int count = int(program.integer("count"));
    auto* half = program.output<uint16_t>("half", count);
    auto* bfloat = program.output<uint16_t>("bfloat", count);
    float* back = program.output<float>("back", 2 * count);
    launch(numbers_kernel, 1, 32, 0, {}, program.input<const float>("x"), half, bfloat, back, count);
  } else {
    Program::stop("there is no kernel " + name);
  }
  return program.finish();
}
