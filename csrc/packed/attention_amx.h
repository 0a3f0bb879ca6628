// Attention on AMX tiles: softmax weights of a block of queries, 32 queries and 32 tokens at a time, then their GEMM
// with the values. Keys are read once per block; the values of 32 channels stay in L1 for the whole block.
//
// The weights of a row are 2^(logit - reference), where the reference is the maximum of the row's first 32 logits, so
// that logits are exponentiated as soon as they are computed; the final division removes the scale. A row whose weights
// overflow, or that has a NaN, is computed again with the maximum of all its logits.
// While the logits of 32 queries and 32 tokens are exponentiated, the next ones are multiplied.

#pragma once

#include "csrc/packed/attention_amx_softmax.h"

#if defined(__AMX_BF16__)

#include "csrc/cpu/matrix.h"
#include "csrc/packed/attention_operands.h"
#include "csrc/packed/attention_softmax.h"

namespace vitfast::VITFAST_ISA {

struct TileScratch {
  TileScratch(Arena& arena, const PackedAttention& a)
      : chunks(ceil_div(a.tokens, chunk_tokens)),
        steps(a.head_dim / (2 * amx_words)),
        keys(arena.take<uint32_t>(2 * chunks * steps * tile_words)),
        values(arena.take<uint32_t>(2 * chunks * steps * tile_words)),
        ones(arena.take<uint32_t>(tile_words)),
        queries(arena.take<uint32_t>(block_rows / amx_rows * steps * tile_words)),
        logits(arena.take<float>(pair_rows * chunk_tokens)),
        weights(arena.take<uint32_t>(block_rows / amx_rows * chunks * tile_words)),
        sums(arena.take<float>(pair_rows * chunk_tokens)),
        factors(arena.take<float>(block_rows)),
        references(arena.take<float>(block_rows)),
        rotated(take_rotated(arena, a)) {}
  const int64_t chunks;  // of tokens
  const int64_t steps;   // tiles of head_dim
  uint32_t* keys;        // [2 chunks, steps] tiles: 16 pairs of channels of 16 tokens
  uint32_t* values;      // [steps, chunks, 2] tiles: 16 pairs of tokens, of 16 channels in unpack's order
  uint32_t* ones;        // a tile of ones, whose product is the sum of the weights
  uint32_t* queries;     // [8, steps] tiles
  float* logits;         // [32, 32]
  uint32_t* weights;     // [8, chunks] tiles
  float* sums;           // [32, 32] of the product with values
  float* factors;        // [128]: 1 / the row's weights
  float* references;     // [128]
  char* rotated;
};

inline bool is_of_tiles(const PackedAttention& a) {
  return a.qkv_type == Type::bfloat16 && a.head_dim % (2 * amx_words) == 0 && !a.has_bias();
}

// Queries of a head; `kept`: which of the first 32 are stored.
struct TileBlock {
  int64_t row, rows;
  uint32_t kept = ~uint32_t(0);
  int64_t tiles() const { return ceil_div(rows, amx_rows); }
  int64_t pairs() const { return ceil_div(rows, pair_rows); }
};

// One head of one image.
class TiledHead {
 public:
  TiledHead(
      const PackedAttention& a, int64_t image, int64_t head, const HeadOperands<BFloat16>& x, const TileScratch& s)
      : s(s),
        x(x),
        tokens(a.tokens),
        channels(a.heads * a.head_dim),
        out_type(a.out_type),
        out(image * a.tokens * channels + head * a.head_dim),
        out_data(a.out),
        scale(float(a.scale * 1.4426950408889634)),
        last_mask(uint32_t((uint64_t(1) << (tokens - (s.chunks - 1) * chunk_tokens)) - 1)),
        last_weights_mask(mask_of_weights(last_mask)) {
    pack_keys();
    pack_values();
  }

  // The queries [begin, end).
  void attend(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; row += block_rows) {
      const TileBlock block{row, end - row < block_rows ? end - row : block_rows};
      load_queries(block);
      uint32_t far_pairs = make_weights<true>(block);
      uint32_t far_rows[block_rows / pair_rows] = {};
      find_factors(block, far_rows);
      multiply_values(block);
      for (int64_t pair = 0; pair < block.pairs(); ++pair) {
        if (far_rows[pair] == 0 && (far_pairs >> pair & 1) == 0) continue;
        const int64_t first = pair * pair_rows;
        attend_again({row + first, block.rows - first < pair_rows ? block.rows - first : pair_rows, far_rows[pair]});
      }
    }
  }

 private:
  void pack_keys() const {
    for (int64_t tile = 0; tile < 2 * s.chunks; ++tile) {
      const int64_t first = tile * amx_words, rest = tokens - first;
      for (int64_t step = 0; step < s.steps; ++step) {
        const BFloat16* k = x.k + first * x.stride + step * 2 * amx_words;
        Vector<float> square[16];  // each float holds the bits of a pair
        for (int64_t i = 0; i < 16; ++i) {
          square[i] = i < rest ? load(reinterpret_cast<const float*>(k + i * x.stride)) : Vector<float>{};
        }
        transpose<float>(square);
        float* target = reinterpret_cast<float*>(s.keys + (tile * s.steps + step) * tile_words);
        for (int64_t i = 0; i < 16; ++i) store(target + i * amx_words, square[i]);
      }
    }
  }

  void pack_values() const {
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      for (int64_t i = 0; i < amx_words; ++i) {
        const int64_t token = chunk * chunk_tokens + token_of_weight(2 * i);
        const BFloat16* v = x.v + token * x.v_stride;
        for (int64_t step = 0; step < s.steps; ++step) {
          const __m512i even = token < tokens ? _mm512_loadu_si512(v + step * 2 * amx_words) : _mm512_setzero_si512();
          const __m512i odd =
              token + 1 < tokens ? _mm512_loadu_si512(v + x.v_stride + step * 2 * amx_words) : _mm512_setzero_si512();
          const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
          uint32_t* target = s.values + (step * s.chunks + chunk) * 2 * tile_words + i * amx_words;
          std::memcpy(target, &low, sizeof(low));
          std::memcpy(target + tile_words, &high, sizeof(high));
        }
      }
    }
    for (int64_t i = 0; i < tile_words; ++i) s.ones[i] = 0x3f803f80;
  }

  // Token at position i of a row's 32 weights, in the order of vpackusdw.
  static constexpr int64_t token_of_weight(int64_t i) { return i / 8 * 4 + i % 4 + (i % 8 < 4 ? 0 : amx_words); }
  static constexpr uint32_t mask_of_weights(uint32_t tokens) {
    uint32_t mask = 0;
    for (int64_t i = 0; i < chunk_tokens; ++i) mask |= (tokens >> token_of_weight(i) & 1) << i;
    return mask;
  }

  void load_queries(const TileBlock& block) const {
    const int64_t row_bytes = 2 * amx_words * int64_t(sizeof(BFloat16));
    for (int64_t r = 0; r < block.tiles() * amx_rows; ++r) {
      for (int64_t step = 0; step < s.steps; ++step) {
        uint32_t* target = s.queries + ((r / amx_rows * s.steps + step) * amx_rows + r % amx_rows) * amx_words;
        if (r < block.rows) {
          std::memcpy(target, x.q + (block.row + r) * x.stride + step * 2 * amx_words, row_bytes);
        } else {
          std::memset(target, 0, row_bytes);
        }
      }
    }
  }

  uint32_t* weights_of(int64_t pair) const { return s.weights + 2 * pair * s.chunks * tile_words; }

  // The logits of 16 or 32 queries and 32 tokens, interleaved with the exponentiation of the previous ones.
  template <bool has_two, typename Other>
  VITFAST_INLINE void multiply_keys(int64_t chunk, int64_t pair, Other& other) const {
    const int64_t steps = s.steps * tile_words;
    const uint32_t* k = s.keys + 2 * chunk * steps;
    const uint32_t* queries = s.queries + 2 * pair * steps;
    clear_tile<0>();
    clear_tile<1>();
    if constexpr (has_two) {
      clear_tile<2>();
      clear_tile<3>();
    }
    for (int64_t i = 0; i < steps; i += tile_words) {
      load_tile<4>(queries + i, 64);
      load_tile<6>(k + i, 64);
      multiply_bfloat16<0, 4, 6>();
      other.take_some();
      load_tile<7>(k + steps + i, 64);
      multiply_bfloat16<1, 4, 7>();
      other.take_some();
      if constexpr (has_two) {
        load_tile<5>(queries + steps + i, 64);
        multiply_bfloat16<2, 5, 6>();
        other.take_some();
        multiply_bfloat16<3, 5, 7>();
        other.take_some();
      }
    }
    other.take_rest();  // before its logits are overwritten
    store_pair<has_two>(s.logits);
  }

  template <bool has_two>
  static VITFAST_INLINE void store_pair(float* target) {
    constexpr int64_t line = chunk_tokens * 4;
    store_tile<0>(target, line);
    store_tile<1>(target + amx_words, line);
    if constexpr (has_two) {
      store_tile<2>(target + amx_rows * chunk_tokens, line);
      store_tile<3>(target + amx_rows * chunk_tokens + amx_words, line);
    }
  }

  template <typename Other>
  VITFAST_INLINE void multiply_keys(int64_t tiles, int64_t chunk, int64_t pair, Other& other) const {
    if (tiles - 2 * pair >= 2) return multiply_keys<true>(chunk, pair, other);
    multiply_keys<false>(chunk, pair, other);
  }

  // Computes all weights of a block, with references from the first 32 logits or with the present ones. Returns a bit
  // for each pair of tiles that has a weight far below the others, or a NaN.
  template <bool finds_references>
  VITFAST_INLINE uint32_t make_weights(const TileBlock& block) const {
    const int64_t tiles = block.tiles(), pairs = block.pairs();
    uint32_t far_pairs = 0;
    NoWork nothing;
    multiply_keys(tiles, 0, 0, nothing);
    for (int64_t chunk = 0, pair = 0; chunk < s.chunks;) {
      if (finds_references && chunk == 0) find_references(pair);
      Exponentiation weights(
          s.logits,
          s.references + pair * pair_rows,
          weights_of(pair) + chunk * tile_words,
          (s.chunks - 1) * tile_words,
          tiles - 2 * pair >= 2 ? pair_rows : amx_rows,
          scale * weight_unit,
          chunk + 1 == s.chunks ? last_weights_mask : ~uint32_t(0));
      const int64_t this_pair = pair;
      if (++pair == pairs) {
        pair = 0;
        ++chunk;
      }
      if (chunk < s.chunks) {
        multiply_keys(tiles, chunk, pair, weights);
      } else {
        weights.take_rest();
      }
      far_pairs |= uint32_t(weights.has_far()) << this_pair;
    }
    return far_pairs;
  }

  // Pairwise maxima of a row of 32 logits, without those after the last token; NaN if the second of a pair is.
  VITFAST_INLINE Vector<float> largest_of_row(const float* row, bool is_last) const {
    const uint32_t mask = is_last ? last_mask : ~uint32_t(0);
    const Vector<float> least = broadcast(-__builtin_inff());
    const auto low = (Vector<float>)_mm512_mask_loadu_ps((__m512)least, __mmask16(mask), row);
    const auto high = (Vector<float>)_mm512_mask_loadu_ps((__m512)least, __mmask16(mask >> 16), row + amx_words);
    return larger(low, high);
  }

  VITFAST_INLINE void find_references(int64_t pair) const {
    for (int64_t tile = 0; tile < 2; ++tile) {
      Vector<float> square[16];
      for (int64_t r = 0; r < amx_rows; ++r) {
        square[r] = largest_of_row(s.logits + (tile * amx_rows + r) * chunk_tokens, s.chunks == 1);
      }
      transpose<float>(square);
      Vector<float> largest = square[0];
      for (int64_t i = 1; i < 16; ++i) largest = larger(largest, square[i]);
      store(
          s.references + pair * pair_rows + tile * amx_rows,
          largest * (scale * weight_unit) - reference_of_zero(first_exponent));
    }
  }

  // Computes 1 / the sums of a block's weights, and for each pair of tiles a bit for each row whose sum is too large.
  void find_factors(const TileBlock& block, uint32_t* far_rows) const {
    const Integers<float> rows = amx_words * Integers<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    load_tile<7>(s.ones, 64);
    for (int64_t pair = 0; pair < block.pairs(); ++pair) {
      const uint32_t* w = weights_of(pair);
      const int64_t next_tile = s.chunks * tile_words;
      clear_tile<0>();
      clear_tile<1>();
      for (int64_t chunk = 0; chunk < s.chunks; ++chunk, w += tile_words) {
        load_tile<4>(w, 64);
        multiply_bfloat16<0, 4, 7>();
        load_tile<5>(w + next_tile, 64);
        multiply_bfloat16<1, 5, 7>();
      }
      store_tile<0>(s.sums, 64);
      store_tile<1>(s.sums + tile_words, 64);
      for (int64_t tile = 0; tile < 2; ++tile) {
        const auto sums = (Vector<float>)_mm512_i32gather_ps((__m512i)rows, s.sums + tile * tile_words, 4);
        store(s.factors + pair * pair_rows + tile * amx_rows, reciprocal(sums));
        const uint32_t far = _mm512_cmp_ps_mask((__m512)sums, _mm512_set1_ps(1.0f), _CMP_NLE_UQ);
        far_rows[pair] |= far << tile * amx_rows;
      }
    }
  }

  template <bool has_two>
  VITFAST_INLINE void multiply_values(const uint32_t* w, const uint32_t* v) const {
    const int64_t next_tile = s.chunks * tile_words;
    clear_tile<0>();
    clear_tile<1>();
    clear_tile<2>();
    clear_tile<3>();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk, w += tile_words, v += 2 * tile_words) {
      load_tile<4>(w, 64);
      load_tile<6>(v, 64);
      multiply_bfloat16<0, 4, 6>();
      load_tile<7>(v + tile_words, 64);
      multiply_bfloat16<1, 4, 7>();
      if constexpr (has_two) {
        load_tile<5>(w + next_tile, 64);
        multiply_bfloat16<2, 5, 6>();
        multiply_bfloat16<3, 5, 7>();
      }
    }
    store_pair<has_two>(s.sums);
  }

  void multiply_values(const TileBlock& block) const {
    for (int64_t step = 0; step < s.steps; ++step) {
      const uint32_t* v = s.values + step * s.chunks * 2 * tile_words;
      for (int64_t pair = 0; pair < block.pairs(); ++pair) {
        const int64_t first = pair * pair_rows, rest = block.rows - first;
        if (rest > amx_rows) {
          multiply_values<true>(weights_of(pair), v);
        } else {
          multiply_values<false>(weights_of(pair), v);
        }
        const int64_t place = out + (block.row + first) * channels + step * chunk_tokens;
        const float* factors = s.factors + first;
        const int64_t rows = rest < pair_rows ? rest : pair_rows;
        if (out_type == Type::bfloat16) {
          store_rows(static_cast<BFloat16*>(out_data) + place, rows, block.kept, factors);
        } else {
          store_rows(static_cast<float*>(out_data) + place, rows, block.kept, factors);
        }
      }
    }
  }

  template <typename T>
  VITFAST_INLINE void store_rows(T* target, int64_t rows, uint32_t kept, const float* factors) const {
    for (int64_t r = 0; r < rows; ++r) {
      if ((kept >> r & 1) == 0) continue;
      const Vector<float> factor = broadcast(factors[r]);
      const Vector<float> low = load(s.sums + r * chunk_tokens) * factor;
      const Vector<float> high = load(s.sums + r * chunk_tokens + amx_words) * factor;
      if constexpr (sizeof(T) == sizeof(float)) {
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        store(target + r * channels, (Vector<float>)_mm512_permutex2var_epi64((__m512i)low, first, (__m512i)high));
        store(
            target + r * channels + amx_words,
            (Vector<float>)_mm512_permutex2var_epi64((__m512i)low, second, (__m512i)high));
      } else {
        const auto numbers = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        const __m512i in_order = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), numbers);
        std::memcpy(target + r * channels, &in_order, sizeof(in_order));
      }
    }
  }

  // Computes those of 32 rows again that have a NaN or whose weights overflowed (`kept`), with the maximum of all their
  // logits as references.
  void attend_again(TileBlock block) const {
    load_queries(block);
    float largest[pair_rows], first[pair_rows];
    uint32_t nans = 0;
    NoWork nothing;
    for (float& logit : largest) logit = -__builtin_inff();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      multiply_keys(block.tiles(), chunk, 0, nothing);
      const int64_t rest = tokens - chunk * chunk_tokens;
      for (int64_t r = 0; r < block.rows; ++r) {
        for (int64_t i = 0; i < (rest < chunk_tokens ? rest : chunk_tokens); ++i) {
          const float logit = s.logits[r * chunk_tokens + i];
          largest[r] = logit > largest[r] ? logit : largest[r];
          nans |= uint32_t(__builtin_isnan(logit)) << r;
        }
      }
      if (chunk == 0) std::memcpy(first, largest, sizeof(first));
    }
    // logits so far above the reference that their weights wrapped to zero
    for (int64_t r = 0; r < block.rows; ++r) block.kept |= uint32_t((largest[r] - first[r]) * scale > 1000.0f) << r;
    block.kept |= nans;
    if (block.kept == 0) return;
    for (int64_t r = 0; r < pair_rows; ++r) {
      const float reference = largest[r] * (scale * weight_unit) - reference_of_zero(largest_exponent);
      s.references[r] = (nans >> r & 1) ? __builtin_nanf("") : reference;
    }
    make_weights<false>(block);
    uint32_t ignored = 0;
    find_factors(block, &ignored);
    multiply_values(block);
  }

  const TileScratch& s;
  const HeadOperands<BFloat16> x;
  const int64_t tokens, channels;
  const Type out_type;
  const int64_t out;  // index of its first result
  void* const out_data;
  const float scale;                 // of logits, in log2 units
  const uint32_t last_mask;          // tokens of the last chunk,
  const uint32_t last_weights_mask;  // and their positions among a row's weights
};

}  // namespace vitfast::VITFAST_ISA

#endif
