// Winograd rung, AVX2: a 3x3 layer with 16 multiplications where the definition has 36.
//
// Winograd's F(2x2, 3x3) computes a tile of 2x2 outputs Y from 4x4 inputs D and the weights G as
// 4 Y = A' [(B'D B) o (H G H')] A, with o the product element by element and
//
//          1  0 -1  0             2  0  0
//     B' = 0  1  1  0      H  =   1  1  1      A' = 1  1  1  0
//          0 -1  1  0             1 -1  1           0  1 -1 -1
//          0  1  0 -1             0  0  2
//
// H is twice the usual matrix, so that everything is an integer; the 4 goes into the float scale.
// Summed over input channels, each of the 16 positions is a matrix product of bytes: VPMADDUBSW
// multiplies u8 by s8 and adds two neighbours into 16 bits.
//
// Operands, for codes of b <= 4 bits, z = 2^(b-1) if unsigned and 0 if signed: B'D B of the centred
// codes D - z lies in -4 * 2^(b-1) .. 4 * 2^(b-1) - 2, so an offset of 4 * 2^(b-1) makes it u8, at
// most
// 62. (A constant z in D reaches position (1, 1) alone, fourfold: there unsigned codes bring their
// offset along.) Weights: |H G H'| <= 9 * 8 = 72 in s8. A pair of products is at most 2 * 62 * 72 =
// 8,928, so VPMADDUBSW never saturates.
//
// Sums: the products of 64 channels are added modulo 2^16, and the output transform runs modulo
// 2^16 too. That is exact if the final value fits 16 bits. Without the offsets, which are taken off
// again, a 16-bit lane ends as 4 times the sum over its half of the channels of weight times
// centred code, so 4 * 2^(b-1) * sum |w| <= 32,767 over the lane's 32 * 9 weights suffices. Two and
// three bits always pass (8 * 288 * 2 = 4,608; 16 * 288 * 4 = 18,432); 4-bit weights pass while
// their mean magnitude is below 3.55, as they do in nine of ten trained layers. Otherwise the 64
// channels are cut into 2 or 4 spans, each added modulo 2^16 and then widened; 4 spans are exact
// for all weights (32 * 72 * 8 = 18,432). How many is decided when the weights of a layer are laid
// out. 64 -> 64 channels, sums alone: 1, 2, 4 spans 74, 66, 58 MAC/cycle. Groups of 64 channels are
// added in 32 bits.
//
// The inner loop is one asm block, because gcc 12 spills a tile of 12 accumulators.
#include "network/conv3x3.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cstdlib>
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX2
#include "network/finish.h"

constexpr int kTiles = 6, kLanes = 8, kVectors = 2, kBlock = kVectors * kLanes;
constexpr int kPositions = 16, kSteps = kMapChannels / 4;
typedef Vector<kLanes>::Int Int;

// Layout: Header; int16 [groups, spans, out / 16, 4 outputs, 32 lanes] with room for the most
// spans; int32 [out]; weights s8 [out / 16, groups, 16 positions, 16 steps, 16 outputs, 4
// channels].
constexpr int kMostSpans = 4;
struct Header {
  int64_t spans;  // of 64 channels
  int64_t unused[7];
};

struct Layout {
  int64_t groups, blocks, lane_constants, constants, weights, bytes;
  Layout(int64_t in, int64_t out) : groups(in / kMapChannels), blocks(out / kBlock) {
    lane_constants = sizeof(Header);
    constants = lane_constants + groups * kMostSpans * blocks * 4 * 2 * kBlock * 2;
    weights = constants + out * 4;
    bytes = weights + blocks * groups * kPositions * kSteps * kBlock * 4;
  }
};

int64_t laid_out_bytes(int64_t in, int64_t out) { return Layout(in, out).bytes; }

// H G H'
void weight_forms(const int8_t* g, int64_t in, int u[4][4]) {
  int rows[4][3];
  for (int j = 0; j < 3; ++j) {
    const int g0 = g[j * in], g1 = g[(3 + j) * in], g2 = g[(6 + j) * in];
    rows[0][j] = 2 * g0, rows[1][j] = g0 + g1 + g2, rows[2][j] = g0 - g1 + g2, rows[3][j] = 2 * g2;
  }
  for (int i = 0; i < 4; ++i) {
    const int* r = rows[i];
    u[i][0] = 2 * r[0], u[i][1] = r[0] + r[1] + r[2];
    u[i][2] = r[0] - r[1] + r[2], u[i][3] = 2 * r[2];
  }
}

// A' m A
void output_forms(const int64_t m[4][4], int64_t y[4]) {
  int64_t s[2][4];
  for (int j = 0; j < 4; ++j) {
    s[0][j] = m[0][j] + m[1][j] + m[2][j], s[1][j] = m[1][j] - m[2][j] - m[3][j];
  }
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = s[i][0] + s[i][1] + s[i][2], y[2 * i + 1] = s[i][1] - s[i][2] - s[i][3];
  }
}

// The largest 4 * 2^(b-1) * sum |w| over the weights of one 16-bit lane of a span.
int64_t largest_lane(const int8_t* weights, int64_t in, int64_t out, int bits, int64_t spans) {
  const int64_t width = kMapChannels / spans;
  int64_t largest = 0;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t first = 0; first < in; first += width)
      for (int64_t half = 0; half < 2; ++half) {
        int64_t sum = 0;
        for (int64_t c = first; c < first + width; ++c)
          if (c % 4 / 2 == half)
            for (int64_t tap = 0; tap < 9; ++tap) sum += std::abs(weights[(o * 9 + tap) * in + c]);
        if (sum > largest) largest = sum;
      }
  return (int64_t{4} << (bits - 1)) * largest;
}

void lay_out(const int8_t* weights, int64_t in, int64_t out, bool is_signed, int bits, void* to) {
  const Layout layout(in, out);
  uint8_t* base = static_cast<uint8_t*>(to);
  int16_t* lane_constants = reinterpret_cast<int16_t*>(base + layout.lane_constants);
  int32_t* constants = reinterpret_cast<int32_t*>(base + layout.constants);
  int8_t* laid = reinterpret_cast<int8_t*>(base + layout.weights);
  int64_t spans = 1;
  while (spans < kMostSpans && largest_lane(weights, in, out, bits, spans) > 32767) spans *= 2;
  reinterpret_cast<Header*>(base)->spans = spans;
  const int64_t offset = int64_t{4} << (bits - 1), z = is_signed ? 0 : int64_t{1} << (bits - 1);
  const int64_t width = kMapChannels / spans;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t block = o / kBlock, lane = o % kBlock;
    int64_t total = 0;
    for (int64_t span = 0; span < layout.groups * spans; ++span) {
      int64_t added[2][4][4] =
          {};  // by the offsets, to each product, in either half of the channels
      for (int64_t c = span * width; c < (span + 1) * width; ++c) {
        const int8_t* g = weights + o * 9 * in + c;
        int u[4][4];
        weight_forms(g, in, u);
        for (int tap = 0; tap < 9; ++tap) total += g[tap * in];
        const int64_t group = c / kMapChannels, k = c % kMapChannels;
        for (int p = 0; p < kPositions; ++p) {
          const int value = u[p / 4][p % 4];
          const int64_t at = ((block * layout.groups + group) * kPositions + p) * kSteps + k / 4;
          laid[(at * kBlock + lane) * 4 + k % 4] = static_cast<int8_t>(value);
          added[k % 4 / 2][p / 4][p % 4] += offset * value;
        }
      }
      for (int half = 0; half < 2; ++half) {
        int64_t y[4];
        output_forms(added[half], y);
        for (int i = 0; i < 4; ++i) {
          const int64_t at =
              ((span * layout.blocks + block) * 4 + i) * 2 * kBlock + 2 * lane + half;
          lane_constants[at] = static_cast<int16_t>(-y[i]);
        }
      }
    }
    constants[o] = static_cast<int32_t>(4 * z * total);
  }
}

// B'D B + offset for 32 channels of one tile: u8 [16 positions] at `stride`.
QSR_INLINE void transform(const uint8_t* in, int64_t row, int64_t pixel, uint8_t* to,
                          int64_t stride, __m256i offset, __m256i offset11) {
  __m256i r[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, in += row) {
    __m256i d[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k)
      d[k] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + k * pixel));
    r[i][0] = _mm256_sub_epi8(d[0], d[2]), r[i][1] = _mm256_add_epi8(d[1], d[2]);
    r[i][2] = _mm256_sub_epi8(d[2], d[1]), r[i][3] = _mm256_sub_epi8(d[1], d[3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m256i t[4] = {_mm256_sub_epi8(r[0][j], r[2][j]), _mm256_add_epi8(r[1][j], r[2][j]),
                          _mm256_sub_epi8(r[2][j], r[1][j]), _mm256_sub_epi8(r[1][j], r[3][j])};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (4 * i + j) * stride),
                          _mm256_add_epi8(t[i], i == 1 && j == 1 ? offset11 : offset));
  }
}

#define QSR_TILE(place, s0, s1)              \
  "vpbroadcastd " place                      \
  "(%[a]), %%ymm14\n\t"                      \
  "vpmaddubsw %%ymm12, %%ymm14, %%ymm15\n\t" \
  "vpaddw %%ymm15, %%ymm" #s0 ", %%ymm" #s0  \
  "\n\t"                                     \
  "vpmaddubsw %%ymm13, %%ymm14, %%ymm14\n\t" \
  "vpaddw %%ymm14, %%ymm" #s1 ", %%ymm" #s1 "\n\t"
#define QSR_ZERO(r) "vpxor %%ymm" #r ", %%ymm" #r ", %%ymm" #r "\n\t"
#define QSR_STORE(k, r) "vmovdqu %%ymm" #r ", 32*" #k "(%[to])\n\t"

// One position, 4 * steps channels of 6 tiles x 16 outputs, modulo 2^16. a: u8 [6, 64];
// w: s8 [steps, 16 outputs, 4]; to: s16 [6, 2 vectors, 8 outputs, 2 halves].
QSR_INLINE void multiply(const uint8_t* a, const int8_t* w, int64_t steps, int16_t* to) {
  const int8_t* end = w + steps * kBlock * 4;
  asm volatile(
      QSR_ZERO(0) QSR_ZERO(1) QSR_ZERO(2) QSR_ZERO(3) QSR_ZERO(4) QSR_ZERO(5)
      QSR_ZERO(6) QSR_ZERO(7) QSR_ZERO(8) QSR_ZERO(9) QSR_ZERO(10) QSR_ZERO(11)
      ".p2align 5\n1:\n\t"
      "vmovdqu (%[w]), %%ymm12\n\tvmovdqu 32(%[w]), %%ymm13\n\t"
      QSR_TILE("", 0, 1) QSR_TILE("64", 2, 3) QSR_TILE("128", 4, 5)
      QSR_TILE("192", 6, 7) QSR_TILE("256", 8, 9) QSR_TILE("320", 10, 11)
      "add $4, %[a]\n\tadd $64, %[w]\n\tcmp %[w], %[end]\n\tjne 1b\n\t"
      QSR_STORE(0, 0) QSR_STORE(1, 1) QSR_STORE(2, 2) QSR_STORE(3, 3) QSR_STORE(4, 4)
      QSR_STORE(5, 5) QSR_STORE(6, 6) QSR_STORE(7, 7) QSR_STORE(8, 8) QSR_STORE(9, 9)
      QSR_STORE(10, 10) QSR_STORE(11, 11)
      : [a] "+r"(a), [w] "+r"(w)
      : [end] "r"(end), [to] "r"(to)
      : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10",
        "ymm11", "ymm12", "ymm13", "ymm14", "ymm15", "memory", "cc");
}

#undef QSR_TILE
#undef QSR_ZERO
#undef QSR_STORE

// A' m A of one vector: m has 16 positions at `stride` bytes; y[4] gets the outputs of the tile.
QSR_INLINE void outputs_of(const uint8_t* m, int64_t stride, __m256i y[4]) {
  __m256i s[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m256i p[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      p[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(m + (4 * i + j) * stride));
    s[0][j] = _mm256_add_epi16(_mm256_add_epi16(p[0], p[1]), p[2]);
    s[1][j] = _mm256_sub_epi16(_mm256_sub_epi16(p[1], p[2]), p[3]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = _mm256_add_epi16(_mm256_add_epi16(s[i][0], s[i][1]), s[i][2]);
    y[2 * i + 1] = _mm256_sub_epi16(_mm256_sub_epi16(s[i][1], s[i][2]), s[i][3]);
  }
}

struct Scratch {
  alignas(64) int16_t m[kPositions][kTiles][2 * kBlock];
  alignas(64) int32_t sums[kTiles][kVectors][4][kLanes];
};

// The sums 4 Y of one group of tiles and 16 outputs, all input channels, into scratch.sums.
inline void sums_of(const Conv3x3& job, const Layout& layout, const uint8_t* tiles, int64_t block,
                    int64_t count, Scratch& scratch) {
  const uint8_t* base = static_cast<const uint8_t*>(job.weights);
  const int64_t spans = reinterpret_cast<const Header*>(base)->spans, steps = kSteps / spans;
  const __m256i ones = _mm256_set1_epi16(1);
  constexpr int64_t kStride = sizeof(scratch.m[0]);
  for (int64_t span = 0; span < layout.groups * spans; ++span) {
    const int64_t group = span / spans, step = span % spans * steps;
    const int8_t* w = reinterpret_cast<const int8_t*>(base + layout.weights) +
                      ((block * layout.groups + group) * kPositions * kSteps + step) * kBlock * 4;
    const uint8_t* a = tiles + group * kPositions * kTiles * kMapChannels + 4 * step;
    for (int p = 0; p < kPositions; ++p, w += kSteps * kBlock * 4, a += kTiles * kMapChannels)
      multiply(a, w, steps, scratch.m[p][0]);
    const __m256i* lane_constants = reinterpret_cast<const __m256i*>(base + layout.lane_constants) +
                                    (span * layout.blocks + block) * 4 * kVectors;
    for (int v = 0; v < kVectors; ++v) {
      const __m256i constant = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
          base + layout.constants + (block * kBlock + v * kLanes) * sizeof(int32_t)));
      for (int64_t t = 0; t < count; ++t) {
        __m256i y[4];
        outputs_of(reinterpret_cast<const uint8_t*>(scratch.m) +
                       (t * kVectors + v) * static_cast<int64_t>(sizeof(__m256i)),
                   kStride, y);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m256i taken_off =
              _mm256_add_epi16(y[i], _mm256_loadu_si256(lane_constants + i * kVectors + v));
          __m256i* to = reinterpret_cast<__m256i*>(scratch.sums[t][v][i]);
          const __m256i before = span == 0 ? constant : _mm256_load_si256(to);
          _mm256_store_si256(to, _mm256_add_epi32(before, _mm256_madd_epi16(taken_off, ones)));
        }
      }
    }
  }
}

// The sums themselves, for one pixel at a time.
struct SumStore {
  int32_t* sums;
  int64_t channels;  // that a pixel has from here on
  QSR_INLINE void operator()(Int sum4, int64_t at, int64_t) const {
    const Int sum = sum4 >> 2;
    if (channels >= kLanes)
      *(Int*)(sums + at) = sum;
    else
      for (int64_t k = 0; k < channels; ++k) sums[at + k] = sum[k];
  }
};

// What follows, for `count` tiles from tile `first` on and one vector of outputs.
template <class Use>
QSR_INLINE void outputs(const Conv3x3& job, const Scratch& scratch, int v, int64_t first,
                        int64_t count, int64_t map_channels, const Use& use) {
  const int64_t columns = (job.in.width + 1) / 2, out = job.out_channels;
  const int64_t map_row = job.in.width * map_channels;
  const int64_t code_row = (whole_tiles(job.in.width) + 2) * out;
  int64_t ty = first / columns, tx = first % columns;
  for (int64_t t = 0; t < count; ++t) {
    for (int i = 0; i < 4; ++i) {
      const int64_t y = 2 * ty + i / 2, x = 2 * tx + i % 2;
      if (y < job.in.height && x < job.in.width)
        use(*(const Int*)scratch.sums[t][v][i], y * map_row + x * map_channels,
            (y + 1) * code_row + (x + 1) * out);
    }
    if (++tx == columns) tx = 0, ++ty;
  }
}

void run(const Conv3x3& job, int64_t first, int64_t last) {
  const CodeMap& in = job.in;
  const Layout layout(in.channels, job.out_channels);
  const int64_t columns = (in.width + 1) / 2;
  constexpr int64_t kStride = kTiles * kMapChannels;  // between positions
  const char offset = static_cast<char>(4 << (job.in_bits - 1));
  const __m256i offsets = _mm256_set1_epi8(offset);
  const __m256i offsets11 = _mm256_set1_epi8(job.in_signed ? offset : 0);
  uint8_t* tiles = static_cast<uint8_t*>(_mm_malloc(layout.groups * kPositions * kStride, 64));
  Scratch scratch;
  const int64_t end = (last < (in.height + 1) / 2 ? last : (in.height + 1) / 2) * columns;
  for (int64_t n = first * columns; n < end; n += kTiles) {  // tiles across rows
    const int64_t count = end - n < kTiles ? end - n : kTiles;
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* from = in.at(2 * ((n + t) / columns) - 1, 2 * ((n + t) % columns) - 1);
      for (int64_t c = 0; c < in.channels; c += 32)
        transform(
            from + c, in.row(), in.channels,
            tiles + c / kMapChannels * kPositions * kStride + t * kMapChannels + c % kMapChannels,
            kStride, offsets, offsets11);
    }
    for (int64_t block = 0; block < layout.blocks; ++block) {
      sums_of(job, layout, tiles, block, count, scratch);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t c = block * kBlock + v * kLanes;
        const Finish& f = job.finish;
        if (f.sums) {
          const SumStore store{f.sums + c, f.sum_channels - c};
          outputs(job, scratch, v, n, count, f.sum_channels, store);
        } else if (f.residual) {
          const Finisher<kLanes, true> finish(f, c, 0.25f);
          outputs(job, scratch, v, n, count, job.out_channels, finish);
        } else {
          const Finisher<kLanes, false> finish(f, c, 0.25f);
          outputs(job, scratch, v, n, count, job.out_channels, finish);
        }
      }
    }
  }
  _mm_free(tiles);
}

bool supported() { return __builtin_cpu_supports("avx2"); }

}  // namespace

const Conv3x3Kernel kConv3x3Avx2 = {"winograd-avx2", supported, 2, 4, laid_out_bytes, lay_out, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const Conv3x3Kernel kConv3x3Avx2 = {"winograd-avx2", [] { return false; }, 2, 0, nullptr, nullptr,
                                    nullptr};
}  // namespace qsr

#endif
