// Attention on AMX tiles: 32 queries at a time against 32 tokens at a time.
//
// A row's weights are 2^(its logit - a reference), the largest of its first 32 logits, so that logits become weights as
// soon as they are there; what a row is scaled by, the division takes away again. A row that leaves the range of the
// weights, or has a NaN, is done again with the largest of all its logits.
//
// While tiles are multiplied, of the two vector units only one takes floating-point instructions, but both take those
// on integers: a weight is made as the 16 bits of its bfloat16, with 9 bits behind the point and a table.
//
// While the logits of 16 queries become weights, the next 16 queries are multiplied by 32 keys, and the weights of the
// block before by values.

#pragma once

#include "csrc/packed/amx.h"

#if defined(__AMX_BF16__)

#include "csrc/packed/attention_products.h"
#include "csrc/packed/packed_linear.h"

namespace vitfast::VITFAST_ISA {

constexpr int64_t tile_words = 16 * amx_words;
constexpr int64_t block_rows = 2 * amx_rows;     // queries at a time
constexpr int64_t chunk_tokens = 2 * amx_words;  // logits at a time, and the depth of a product with values

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
        queries(arena.take<uint32_t>(2 * steps * tile_words)),
        logits(arena.take<float>(amx_rows * chunk_tokens)),
        weights(arena.take<uint32_t>(2 * 2 * chunks * tile_words)),
        sums(arena.take<float>(block_rows * chunk_tokens)),
        factors(arena.take<float>(block_rows * amx_words)),
        references(arena.take<float>(block_rows)),
        far_rows(arena.take<uint64_t>(divide_up(a.tokens, block_rows))) {}
  const int64_t chunks;  // of tokens
  const int64_t steps;   // tiles of head_dim
  uint32_t* keys;        // [2 chunks, steps] tiles: 16 pairs of channels of 16 tokens
  uint32_t* values;      // [chunks, 2 steps] tiles: 16 pairs of tokens, of 16 channels
  uint32_t* ones;        // a tile of values that gives the sum of the weights in each column
  uint32_t* queries;     // [2, steps] tiles
  float* logits;         // [16, 32]
  uint32_t* weights;     // two blocks' [chunks, 2] tiles
  float* sums;           // [32, 32] of the product with values
  float* factors;        // [32, 16]: 1 / the row's weights
  float* references;     // [32]
  uint64_t* far_rows;    // of each block, a bit for each row with too large weights, and one above for too small ones
};

inline bool is_of_tiles(const PackedAttention& a) {
  return a.qkv_type == Type::bfloat16 && a.head_dim % (2 * amx_words) == 0;
}

// Queries of a head.
struct TileBlock {
  int64_t row, rows;
  int64_t tiles() const { return divide_up(rows, amx_rows); }
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
    const int64_t blocks = divide_up(end - begin, block_rows);
    const auto block = [&](int64_t index) {
      const int64_t row = begin + index * block_rows;
      return TileBlock{row, end - row < block_rows ? end - row : block_rows};
    };
    load_queries(block(0));
    multiply_keys(0, 0);
    store_logits();
    for (int64_t b = 0; b < blocks; ++b) {
      const TileBlock current = block(b), before = block(b - 1);
      const int64_t tiles = current.tiles(), units = tiles * s.chunks;
      ValuesPosition position;
      bool has_low = false;
      for (int64_t unit = 0; unit < units; ++unit) {
        const int64_t chunk = unit / tiles, tile = unit % tiles, next = unit + 1;
        const bool has_next = next < units || b + 1 < blocks;
        if (next < units) {
          multiply_keys(next / tiles, next % tiles);
        } else if (has_next) {
          load_queries(block(b + 1));
          multiply_keys(0, 0);
        }
        if (b > 0) multiply_values(before, b - 1, position, next * passes() / tiles);
        if (chunk == 0) find_references(tile);
        has_low |= exponentiate(chunk, tile, b);
        if (has_next) store_logits();
      }
      s.far_rows[b] = uint64_t(has_low) << block_rows;
    }
    ValuesPosition position;
    multiply_values(block(blocks - 1), blocks - 1, position, s.chunks * passes());
    for (int64_t b = 0; b < blocks; ++b) {
      if (s.far_rows[b] != 0) attend_again(block(b), uint32_t(s.far_rows[b]));
    }
  }

 private:
  // How far the product with the values has come: its passes over all weights give the rows' sums, then two tiles of
  // channels each.
  struct ValuesPosition {
    int64_t pass = 0, chunk = 0, done = 0;
    uint32_t rows = ~uint32_t(0);  // that are kept
    bool is_exact = false;
  };

  int64_t passes() const { return 1 + s.steps; }

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
        uint32_t* target = s.values + chunk * 2 * s.steps * tile_words + i * amx_words;
        for (int64_t tile = 0; tile < 2 * s.steps; ++tile) {
          const Words low = token < tokens ? load_bits(v + tile * amx_words, amx_words) : Words{};
          const Words high = token + 1 < tokens ? load_bits(v + stride + tile * amx_words, amx_words) : Words{};
          const Words pairs = low | high << 16;
          std::memcpy(target + tile * tile_words, &pairs, sizeof(pairs));
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
    if (block.rows < block_rows) std::memset(s.queries, 0, size_t(2 * s.steps * tile_words) * sizeof(uint32_t));
    for (int64_t r = 0; r < block.rows; ++r) {
      for (int64_t step = 0; step < s.steps; ++step) {
        uint32_t* target = s.queries + ((r / amx_rows * s.steps + step) * amx_rows + r % amx_rows) * amx_words;
        std::memcpy(target, q + (block.row + r) * stride + step * 2 * amx_words, 64);
      }
    }
  }

  uint32_t* weights_of(int64_t block) const { return s.weights + block % 2 * 2 * s.chunks * tile_words; }

  // The logits of 16 queries and 32 tokens, in tiles 4 and 5.
  VITFAST_INLINE void multiply_keys(int64_t chunk, int64_t tile) const {
    const uint32_t* k = s.keys + 2 * chunk * s.steps * tile_words;
    const uint32_t* queries = s.queries + tile * s.steps * tile_words;
    clear_tile<4>();
    clear_tile<5>();
    for (int64_t i = 0; i < s.steps; ++i) {
      load_tile<6>(queries + i * tile_words, 64);
      load_tile<7>(k + i * tile_words, 64);
      multiply_bfloat16<4, 6, 7>();
      load_tile<7>(k + (s.steps + i) * tile_words, 64);
      multiply_bfloat16<5, 6, 7>();
    }
  }

  VITFAST_INLINE void store_logits() const {
    store_tile<4>(s.logits, chunk_tokens * 4);
    store_tile<5>(s.logits + amx_words, chunk_tokens * 4);
  }

  // The largest of a row of 32 logits, without those behind the last token; NaN, if the second of a pair is.
  VITFAST_INLINE Vector<float> largest_of_row(const float* row, bool is_last) const {
    const uint32_t mask = is_last ? last_mask : ~uint32_t(0);
    const Vector<float> least = broadcast(-__builtin_inff());
    const auto low = (Vector<float>)_mm512_mask_loadu_ps((__m512)least, __mmask16(mask), row);
    const auto high = (Vector<float>)_mm512_mask_loadu_ps((__m512)least, __mmask16(mask >> 16), row + amx_words);
    return larger(low, high);
  }

  VITFAST_INLINE void find_references(int64_t tile) const {
    for (int64_t r = 0; r < amx_rows; ++r) {
      const float largest = largest_lane(largest_of_row(s.logits + r * chunk_tokens, s.chunks == 1));
      s.references[tile * amx_rows + r] = reference(largest, first_exponent);
    }
  }

  float reference(float logit, float exponent) const {
    return logit * (scale * weight_unit) - exponent * weight_unit - 0.5f * (1 << more_bits);
  }

  // Whether one is far below the others, or NaN.
  VITFAST_INLINE bool exponentiate(int64_t chunk, int64_t tile, int64_t block) const {
    const float* references = s.references + tile * amx_rows;
    uint32_t* weights = weights_of(block) + (2 * chunk + tile) * tile_words;
    const uint32_t mask = chunk + 1 == s.chunks ? last_weights_mask : ~uint32_t(0);
    const __m512i first_powers = _mm512_load_si512(power_table.values);
    const __m512i last_powers = _mm512_load_si512(power_table.values + 64);
    const float bits_scale = scale * weight_unit;
    __m512i least = _mm512_set1_epi32(-1);
#pragma GCC unroll 4
    for (int64_t r = 0; r < amx_rows; ++r) {
      const Vector<float> low = load(s.logits + r * chunk_tokens) * bits_scale - references[r];
      const Vector<float> high = load(s.logits + r * chunk_tokens + amx_words) * bits_scale - references[r];
      const __m512i logarithms = _mm512_packus_epi32(
          _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)low), _mm512_maskz_cvtps_epi32(__mmask16(-1), (__m512)high));
      least = _mm512_mask_min_epu16(least, mask, least, logarithms);
      const __m512i places = _mm512_srli_epi16(logarithms, more_bits);
      const __m512i excess =
          _mm512_maskz_permutex2var_epi8(__mmask64(0x5555555555555555), first_powers, places, last_powers);
      const __m512i numbers = _mm512_maskz_srli_epi16(mask, _mm512_subs_epu16(logarithms, excess), more_bits);
      std::memcpy(weights + r * amx_words, &numbers, sizeof(numbers));
    }
    return _mm512_cmpeq_epi16_mask(least, _mm512_setzero_si512()) != 0;
  }

  // Up to so many steps of 32 tokens in all passes.
  VITFAST_INLINE void multiply_values(const TileBlock& block, int64_t index, ValuesPosition& at, int64_t end) const {
    const bool has_two = block.tiles() == 2;
    for (; at.done < end; ++at.done) {
      const uint32_t* w = weights_of(index) + at.chunk * 2 * tile_words;
      if (at.chunk == 0) {
        clear_tile<0>();
        clear_tile<1>();
        clear_tile<2>();
        clear_tile<3>();
      }
      load_tile<6>(w, 64);
      if (at.pass == 0) {
        load_tile<7>(s.ones, 64);
        multiply_bfloat16<0, 6, 7>();
        if (has_two) {
          load_tile<6>(w + tile_words, 64);
          multiply_bfloat16<2, 6, 7>();
        }
      } else {
        const uint32_t* v = s.values + (at.chunk * s.steps + at.pass - 1) * 2 * tile_words;
        load_tile<7>(v, 64);
        multiply_bfloat16<0, 6, 7>();
        load_tile<7>(v + tile_words, 64);
        multiply_bfloat16<1, 6, 7>();
        if (has_two) {
          load_tile<6>(w + tile_words, 64);
          multiply_bfloat16<3, 6, 7>();
          load_tile<7>(v, 64);
          multiply_bfloat16<2, 6, 7>();
        }
      }
      if (++at.chunk == s.chunks) {
        finish_pass(block, index, at);
        at.chunk = 0;
        ++at.pass;
      }
    }
  }

  VITFAST_INLINE void finish_pass(const TileBlock& block, int64_t index, const ValuesPosition& at) const {
    constexpr int64_t line = chunk_tokens * 4;
    store_tile<0>(s.sums, line);
    store_tile<2>(s.sums + amx_rows * chunk_tokens, line);
    if (at.pass == 0) return find_factors(block, index, at);
    store_tile<1>(s.sums + amx_words, line);
    store_tile<3>(s.sums + amx_rows * chunk_tokens + amx_words, line);
    const int64_t first = out + block.row * channels + (at.pass - 1) * chunk_tokens;
    if (out_type == Type::bfloat16) {
      store_rows(static_cast<BFloat16*>(out_data) + first, block.rows, at.rows);
    } else {
      store_rows(static_cast<float*>(out_data) + first, block.rows, at.rows);
    }
  }

  VITFAST_INLINE void find_factors(const TileBlock& block, int64_t index, const ValuesPosition& at) const {
    uint32_t far_rows = 0;
    for (int64_t r = 0; r < block.rows; ++r) {
      const Vector<float> sum = load(s.sums + r * chunk_tokens);
      store(s.factors + r * amx_words, reciprocal(sum));
      far_rows |= uint32_t(!(s.sums[r * chunk_tokens] <= 1.0f)) << r;
    }
    if (!at.is_exact) s.far_rows[index] |= far_rows;
  }

  template <typename T>
  VITFAST_INLINE void store_rows(T* target, int64_t rows, uint32_t kept) const {
    for (int64_t r = 0; r < rows; ++r) {
      if ((kept >> r & 1) == 0) continue;
      const Vector<float> factor = load(s.factors + r * amx_words);
      const Vector<float> low = load(s.sums + r * chunk_tokens) * factor;
      const Vector<float> high = load(s.sums + r * chunk_tokens + amx_words) * factor;
      if constexpr (sizeof(T) == sizeof(float)) {
        store(target + r * channels, low);
        store(target + r * channels + amx_words, high);
      } else {
        const __m512bh numbers = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
        std::memcpy(target + r * channels, &numbers, sizeof(numbers));
      }
    }
  }

  // The rows of a block that have a NaN or whose weights became too large, with the largest of all their logits as
  // their references.
  void attend_again(const TileBlock& block, uint32_t far_rows) const {
    load_queries(block);
    float largest[block_rows], first[block_rows];
    uint32_t nans = 0;
    for (float& logit : largest) logit = -__builtin_inff();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      for (int64_t tile = 0; tile < block.tiles(); ++tile) {
        multiply_keys(chunk, tile);
        store_logits();
        const int64_t rest = tokens - chunk * chunk_tokens;
        for (int64_t r = 0; r < amx_rows; ++r) {
          const int64_t row = tile * amx_rows + r;
          for (int64_t i = 0; i < (rest < chunk_tokens ? rest : chunk_tokens); ++i) {
            const float logit = s.logits[r * chunk_tokens + i];
            largest[row] = logit > largest[row] ? logit : largest[row];
            nans |= uint32_t(__builtin_isnan(logit)) << row;
          }
        }
      }
      if (chunk == 0) std::memcpy(first, largest, sizeof(first));
    }
    // so far above its reference that its bits were no number, and became a zero
    for (int64_t r = 0; r < block_rows; ++r) far_rows |= uint32_t((largest[r] - first[r]) * scale > 1000.0f) << r;
    ValuesPosition position;
    position.is_exact = true;
    position.rows = far_rows | nans;
    if (position.rows == 0) return;
    for (int64_t r = 0; r < block_rows; ++r) {
      s.references[r] = (nans >> r & 1) ? __builtin_nanf("") : reference(largest[r], largest_exponent);
    }
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      for (int64_t tile = 0; tile < block.tiles(); ++tile) {
        multiply_keys(chunk, tile);
        store_logits();
        exponentiate(chunk, tile, 0);
      }
    }
    multiply_values(block, 0, position, s.chunks * passes());
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
