// Attention on AMX tiles: the weights of a block of queries, 32 queries and 32 tokens at a time, then their product
// with the values. Keys are read once for a block; the values of 32 channels stay in the first-level cache for all of
// it.
//
// A row's weights are 2^(its logit - a reference), the largest of its first 32 logits, so that logits become weights as
// soon as they are there; what a row is scaled by, the division takes away again. A row that leaves the range of the
// weights, or has a NaN, is done again with the largest of all its logits.
//
// While tiles are multiplied, of the two vector units only one takes floating-point instructions, but both take those
// on integers: a weight is made as the 16 bits of its bfloat16, with 9 bits behind the point and a table.
//
// While the logits of 32 queries and 32 tokens become weights, the next ones are multiplied.

#pragma once

#include "csrc/packed/amx.h"

#if defined(__AMX_BF16__)

#include "csrc/cpu/matrix.h"
#include "csrc/packed/attention_softmax.h"
#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

constexpr int64_t tile_words = 16 * amx_words;
constexpr int64_t pair_rows = 2 * amx_rows;      // queries at a time,
constexpr int64_t chunk_tokens = 2 * amx_words;  // and tokens: also the depth of a product with values
constexpr int64_t block_rows = 4 * pair_rows;    // queries whose weights are kept

// Bits of bfloat16 with two more: a weight's exponent (biased) and 9 bits behind the point.
constexpr int more_bits = 2;
constexpr float weight_unit = 512.0f;
// The exponents of a row's reference, and of its largest logit: 2^-47 leaves room for larger ones.
constexpr float first_exponent = 80.0f, largest_exponent = 120.0f;

// 512 (1 + m - 2^m) in the middle of the four m that share their first seven bits: what makes a power of the bits of
// its logarithm, which have half of a unit of the result more.
struct PowerTable {
  constexpr PowerTable() : values() {
    for (int i = 0; i < 128; ++i) {
      const double m = (i - 0.125) / 128;
      double power = 1, term = 1;
      for (int n = 1; n < 20; ++n) power += term *= m * 0.6931471805599453 / n;
      values[i] = uint8_t(512 * (1 + m - power) + 0.5);
    }
  }
  alignas(64) uint8_t values[128];
};
inline constexpr PowerTable power_table;

struct TileScratch {
  TileScratch(Arena& arena, const PackedAttention& a)
      : chunks(divide_up(a.tokens, chunk_tokens)),
        steps(a.head_dim / (2 * amx_words)),
        keys(arena.take<uint32_t>(2 * chunks * steps * tile_words)),
        values(arena.take<uint32_t>(2 * chunks * steps * tile_words)),
        ones(arena.take<uint32_t>(tile_words)),
        queries(arena.take<uint32_t>(block_rows / amx_rows * steps * tile_words)),
        logits(arena.take<float>(pair_rows * chunk_tokens)),
        weights(arena.take<uint32_t>(block_rows / amx_rows * chunks * tile_words)),
        sums(arena.take<float>(pair_rows * chunk_tokens)),
        factors(arena.take<float>(block_rows)),
        references(arena.take<float>(block_rows)) {}
  const int64_t chunks;  // of tokens
  const int64_t steps;   // tiles of head_dim
  uint32_t* keys;        // [2 chunks, steps] tiles: 16 pairs of channels of 16 tokens
  uint32_t* values;      // [steps, chunks, 2] tiles: 16 pairs of tokens, of 16 channels in unpack's order
  uint32_t* ones;        // a tile of values that gives the sum of the weights in each column
  uint32_t* queries;     // [8, steps] tiles
  float* logits;         // [32, 32]
  uint32_t* weights;     // [8, chunks] tiles
  float* sums;           // [32, 32] of the product with values
  float* factors;        // [128]: 1 / the row's weights
  float* references;     // [128]
};

inline bool is_of_tiles(const PackedAttention& a) {
  return a.qkv_type == Type::bfloat16 && a.head_dim % (2 * amx_words) == 0;
}

// Queries of a head, and which of the first 32 of them are to be computed.
struct TileBlock {
  int64_t row, rows;
  uint32_t kept = ~uint32_t(0);
  int64_t tiles() const { return divide_up(rows, amx_rows); }
  int64_t pairs() const { return divide_up(rows, pair_rows); }
};

// One head of one image.
class TiledHead {
 public:
  TiledHead(const PackedAttention& a, int64_t image, int64_t head, const TileScratch& s)
      : s(s),
        tokens(a.tokens),
        channels(a.heads * a.head_dim),
        stride(3 * channels),
        q(static_cast<const BFloat16*>(a.qkv) + image * a.tokens * stride + head * a.head_dim),
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
        const BFloat16* k = q + channels + first * stride + step * 2 * amx_words;
        Vector<float> square[16];  // the vectors only carry the bits of a pair
        for (int64_t i = 0; i < 16; ++i) {
          square[i] = i < rest ? load(reinterpret_cast<const float*>(k + i * stride)) : Vector<float>{};
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
        const BFloat16* v = q + 2 * channels + token * stride;
        for (int64_t step = 0; step < s.steps; ++step) {
          const __m512i even = token < tokens ? _mm512_loadu_si512(v + step * 2 * amx_words) : _mm512_setzero_si512();
          const __m512i odd =
              token + 1 < tokens ? _mm512_loadu_si512(v + stride + step * 2 * amx_words) : _mm512_setzero_si512();
          const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
          uint32_t* target = s.values + (step * s.chunks + chunk) * 2 * tile_words + i * amx_words;
          std::memcpy(target, &low, sizeof(low));
          std::memcpy(target + tile_words, &high, sizeof(high));
        }
      }
    }
    for (int64_t i = 0; i < tile_words; ++i) s.ones[i] = 0x3f803f80;
  }

  // Which of 32 tokens is at place i of a row's weights, in the order in which vpackusdw leaves them.
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
          std::memcpy(target, q + (block.row + r) * stride + step * 2 * amx_words, row_bytes);
        } else {
          std::memset(target, 0, row_bytes);
        }
      }
    }
  }

  uint32_t* weights_of(int64_t pair) const { return s.weights + 2 * pair * s.chunks * tile_words; }

  // The logits of 16 or 32 queries and 32 tokens; some of the other work after each product.
  template <bool has_two, typename Meanwhile>
  VITFAST_INLINE void multiply_keys(int64_t chunk, int64_t pair, Meanwhile& meanwhile) const {
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
      meanwhile.take_some();
      load_tile<7>(k + steps + i, 64);
      multiply_bfloat16<1, 4, 7>();
      meanwhile.take_some();
      if constexpr (has_two) {
        load_tile<5>(queries + steps + i, 64);
        multiply_bfloat16<2, 5, 6>();
        meanwhile.take_some();
        multiply_bfloat16<3, 5, 7>();
        meanwhile.take_some();
      }
    }
    meanwhile.take_rest();  // of the logits that are overwritten now
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

  template <typename Meanwhile>
  VITFAST_INLINE void multiply_keys(int64_t tiles, int64_t chunk, int64_t pair, Meanwhile& meanwhile) const {
    if (tiles - 2 * pair >= 2) return multiply_keys<true>(chunk, pair, meanwhile);
    multiply_keys<false>(chunk, pair, meanwhile);
  }

  // All weights of a block, with references from the first 32 logits or with those that are there. A bit for each pair
  // of tiles that has a weight far below the others, or a NaN.
  template <bool finds_references>
  VITFAST_INLINE uint32_t make_weights(const TileBlock& block) const {
    const int64_t tiles = block.tiles(), pairs = block.pairs();
    uint32_t far_pairs = 0;
    NothingElse nothing;
    multiply_keys(tiles, 0, 0, nothing);
    for (int64_t chunk = 0, pair = 0; chunk < s.chunks;) {
      if (finds_references && chunk == 0) find_references(pair);
      Exponentiation weights(*this, chunk, pair, tiles - 2 * pair >= 2 ? pair_rows : amx_rows);
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

  // The largest of a row of 32 logits, without those behind the last token; NaN, if the second of a pair is.
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

  static constexpr float reference_of_zero(float exponent) { return exponent * weight_unit + 0.5f * (1 << more_bits); }

  struct NothingElse {
    void take_some() {}
    void take_rest() {}
  };

  // Makes weights of the logits of 16 or 32 queries and 32 tokens, four rows at a time.
  struct Exponentiation {
    VITFAST_INLINE Exponentiation(const TiledHead& head, int64_t chunk, int64_t pair, int64_t rows)
        : logits(head.s.logits),
          references(head.s.references + pair * pair_rows),
          weights(head.weights_of(pair) + chunk * tile_words),
          next_tile((head.s.chunks - 1) * tile_words),
          last(references + rows),
          scale(head.scale * weight_unit),
          mask(chunk + 1 == head.s.chunks ? head.last_weights_mask : ~uint32_t(0)),
          first_powers(_mm512_load_si512(power_table.values)),
          last_powers(_mm512_load_si512(power_table.values + 64)),
          least(_mm512_set1_epi32(-1)),
          middle(references + amx_rows) {}

    VITFAST_INLINE void take_some() {
      if (references == last) return;
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Vector<float> low = load(logits + r * chunk_tokens) * scale - references[r];
        const Vector<float> high = load(logits + r * chunk_tokens + amx_words) * scale - references[r];
        const __m512i logarithms = _mm512_packus_epi32(
            _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)low),
            _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)high));
        least = _mm512_mask_min_epu16(least, mask, least, logarithms);
        const __m512i places = _mm512_srli_epi16(logarithms, more_bits);
        const __m512i excess =
            _mm512_maskz_permutex2var_epi8(__mmask64(0x5555555555555555), first_powers, places, last_powers);
        const __m512i numbers = _mm512_maskz_srli_epi16(mask, _mm512_subs_epu16(logarithms, excess), more_bits);
        std::memcpy(weights + r * amx_words, &numbers, sizeof(numbers));
      }
      logits += 4 * chunk_tokens;
      references += 4;
      weights += 4 * amx_words;
      if (references == middle) weights += next_tile;
    }

    VITFAST_INLINE void take_rest() {
      while (references != last) take_some();
    }

    // Whether one is far below the others, or NaN.
    VITFAST_INLINE bool has_far() const { return _mm512_cmpeq_epi16_mask(least, _mm512_setzero_si512()) != 0; }

    const float* logits;
    const float* references;
    uint32_t* weights;
    const int64_t next_tile;
    const float* const last;
    const float scale;
    const uint32_t mask;
    const __m512i first_powers, last_powers;
    __m512i least;
    const float* const middle;
  };

  // 1 / the sums of a block's weights, and of each pair of tiles a bit for each row whose sum is too large.
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

  // Those of 32 rows that have a NaN or whose weights became too large (`kept`), with the largest of all their logits
  // as their references.
  void attend_again(TileBlock block) const {
    load_queries(block);
    float largest[pair_rows], first[pair_rows];
    uint32_t nans = 0;
    NothingElse nothing;
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
    // so far above its reference that its bits were no number, and became a zero
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
  const int64_t tokens, channels, stride;
  const BFloat16* const q;  // the head's first query
  const Type out_type;
  const int64_t out;  // the place of its first result
  void* const out_data;
  const float scale;                 // of logits, for powers of 2
  const uint32_t last_mask;          // the tokens of the last chunk,
  const uint32_t last_weights_mask;  // and their places among a row's weights
};

}  // namespace vitfast::VITFAST_ISA

#endif
