// Winograd rung, AVX2: a 3x3 layer with 16 multiplications where the definition has 36.
//
// Winograd's F(2x2, 3x3), with the usual matrices but for H, which is twice as large, so that
// everything is an integer: the results are 4 Y, and the 4 goes into the float scale. Summed over
// input channels, each of the 16 positions is a matrix product of bytes: VPMADDUBSW multiplies u8
// by s8 and adds two neighbours into 16 bits.
//
// Operands, for codes of b <= 4 bits, z = 2^(b-1) if unsigned and 0 if signed: B'D B of the centred
// codes D - z lies in -4 * 2^(b-1) .. 4 * 2^(b-1) - 2, so an offset of 4 * 2^(b-1) makes it u8, at
// most 62. (A constant z in D reaches position (1, 1) alone, fourfold: there unsigned codes bring
// their offset along.) Weights: |H G H'| <= 9 * 8 = 72 in s8. A pair of products is at most
// 2 * 62 * 72 = 8,928, so VPMADDUBSW never saturates.
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
#include "cpu.h"
#include "network/conv.h"

#if QSR_X86
#include <cstdlib>
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX2
#include "network/finish.h"

constexpr int kMostBits = 4, kTile = 2, kForms = 4, kShift = 2;
constexpr int kTiles = 6, kVectors = 2, kLanes = 8;
// clang-format off
constexpr int kB[kForms][4] = {
    {1,  0, -1,  0},
    {0,  1,  1,  0},
    {0, -1,  1,  0},
    {0,  1,  0, -1},
};
constexpr int kH[kForms][3] = {
    {2,  0,  0},
    {1,  1,  1},
    {1, -1,  1},
    {0,  0,  2},
};
constexpr int kA[kTile][kForms] = {
    {1,  1,  1,  0},
    {0,  1, -1, -1},
};
// clang-format on
// Of transformed codes, by their bits.
constexpr int kOffsets[kMostBits + 1] = {0, 4, 8, 16, 32};

constexpr int64_t kGroup = 64;  // channels that are added before they are widened

int64_t depth_of(const ConvShape& s) { return filled(s.in, kGroup); }

#include "network/conv_winograd.h"

constexpr int kPositions = kForms * kForms, kSteps = kGroup / 4;

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
  Layout(const ConvShape& s)
      : groups(depth_of(s) / kGroup), blocks(filled(s.out, kMapLanes) / kBlock) {
    lane_constants = sizeof(Header);
    constants = lane_constants + groups * kMostSpans * blocks * 4 * 2 * kBlock * 2;
    weights = constants + blocks * kBlock * 4;
    bytes = weights + blocks * groups * kPositions * kSteps * kBlock * 4;
  }
};

int64_t laid_out_bytes(const ConvShape& s) { return Layout(s).bytes; }

// Weights that another row laid out can say anything here.
int64_t spans_of(const void* weights) {
  const int64_t spans = static_cast<const Header*>(weights)->spans;
  return spans == 1 || spans == 2 ? spans : kMostSpans;
}

// The largest 4 * 2^(b-1) * sum |w| over the weights of one 16-bit lane of a span.
int64_t largest_lane(const int8_t* weights, const ConvShape& s, int64_t spans) {
  const int64_t width = kGroup / spans;
  int64_t largest = 0;
  for (int64_t o = 0; o < s.out; ++o)
    for (int64_t first = 0; first < s.in; first += width)
      for (int64_t half = 0; half < 2; ++half) {
        int64_t sum = 0;
        for (int64_t c = first; c < first + width && c < s.in; ++c)
          if (c % 4 / 2 == half)
            for (int64_t tap = 0; tap < 9; ++tap)
              sum += std::abs(weights[(o * 9 + tap) * s.in + c]);
        if (sum > largest) largest = sum;
      }
  return kOffsets[s.in_bits] * largest;
}

void lay_out(const int8_t* weights, const ConvShape& s, void* to) {
  const Layout layout(s);
  uint8_t* base = static_cast<uint8_t*>(to);
  int16_t* lane_constants = reinterpret_cast<int16_t*>(base + layout.lane_constants);
  int32_t* constants = reinterpret_cast<int32_t*>(base + layout.constants);
  int8_t* laid = reinterpret_cast<int8_t*>(base + layout.weights);
  int64_t spans = 1;
  while (spans < kMostSpans && largest_lane(weights, s, spans) > 32767) spans *= 2;
  reinterpret_cast<Header*>(base)->spans = spans;
  const int64_t offset = kOffsets[s.in_bits], width = kGroup / spans;
  for (int64_t o = 0; o < s.out; ++o) {
    const int64_t block = o / kBlock, lane = o % kBlock;
    int64_t total = 0;
    for (int64_t span = 0; span < layout.groups * spans; ++span) {
      int64_t added[2][kForms][kForms] = {};  // by the offsets, in either half of the channels
      for (int64_t c = span * width; c < (span + 1) * width && c < s.in; ++c) {
        const int8_t* g = weights + o * 9 * s.in + c;
        int u[kForms][kForms];
        weight_forms(g, s.in, u);
        for (int tap = 0; tap < 9; ++tap) total += g[tap * s.in];
        const int64_t group = c / kGroup, k = c % kGroup;
        for (int p = 0; p < kPositions; ++p) {
          const int value = u[p / kForms][p % kForms];
          const int64_t at = ((block * layout.groups + group) * kPositions + p) * kSteps + k / 4;
          laid[(at * kBlock + lane) * 4 + k % 4] = static_cast<int8_t>(value);
          added[k % 4 / 2][p / kForms][p % kForms] += offset * value;
        }
      }
      for (int half = 0; half < 2; ++half) {
        int64_t y[kTile][kTile];
        both_sides(kA, added[half], y);
        for (int i = 0; i < kTile * kTile; ++i) {
          const int64_t at =
              ((span * layout.blocks + block) * 4 + i) * 2 * kBlock + 2 * lane + half;
          lane_constants[at] = static_cast<int16_t>(-y[i / kTile][i % kTile]);
        }
      }
    }
    constants[o] = s.in_signed ? 0 : static_cast<int32_t>(offset * total);  // 4 z times the weights
  }
}

// B' d, bytes modulo 256
typedef Vector<32>::AlignedByte Bytes;
template <class T>
QSR_INLINE constexpr void input_forms(const T* d, T* t) {
  t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}
static_assert(computes(kB, input_forms<int>));

// B' D B + offset of n channels of one tile: u8 [16 positions] at `stride`.
template <int n>
QSR_INLINE void transform_channels(const uint8_t* in, int64_t row, int64_t pixel, uint8_t* to,
                                   int64_t stride, typename Vector<n>::Byte offset,
                                   typename Vector<n>::Byte offset11) {
  typedef typename Vector<n>::Byte Memory;
  typedef typename Vector<n>::AlignedByte Bytes;  // templates forget that others may lie anywhere
  Bytes rows[kPatch][kForms];                     // of the patch, transformed along x
#pragma GCC unroll 4
  for (int i = 0; i < kPatch; ++i, in += row) {
    Bytes d[kPatch];
#pragma GCC unroll 4
    for (int k = 0; k < kPatch; ++k) d[k] = *(const Memory*)(in + k * pixel);
    input_forms(d, rows[i]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kForms; ++j) {
    const Bytes d[kPatch] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
    Bytes t[kForms];
    input_forms(d, t);
#pragma GCC unroll 4
    for (int i = 0; i < kForms; ++i)
      *(Memory*)(to + (kForms * i + j) * stride) = t[i] + (i == 1 && j == 1 ? offset11 : offset);
  }
}

// clang-format off
// Four input channels of one tile, times 2 x 8 x 4 weights in ymm12 and 13.
#define QSR_TILE(place, s0, s1)                           \
  "vpbroadcastd " place "(%[a]), %%ymm14\n\t"              \
  "vpmaddubsw %%ymm12, %%ymm14, %%ymm15\n\t"              \
  "vpaddw %%ymm15, %%ymm" #s0 ", %%ymm" #s0 "\n\t"        \
  "vpmaddubsw %%ymm13, %%ymm14, %%ymm14\n\t"              \
  "vpaddw %%ymm14, %%ymm" #s1 ", %%ymm" #s1 "\n\t"
#define QSR_ZERO(r) "vpxor %%ymm" #r ", %%ymm" #r ", %%ymm" #r "\n\t"
#define QSR_STORE(k, r) "vmovdqu %%ymm" #r ", 32*" #k "(%[to])\n\t"
// clang-format on

// One position, 4 * steps channels of 6 tiles x 16 outputs, modulo 2^16. a: u8 [6, 64];
// w: s8 [steps, 16 outputs, 4]; to: s16 [6, 2 vectors, 8 outputs, 2 halves].
QSR_INLINE void multiply_position(const uint8_t* a, const int8_t* w, int64_t steps, int16_t* to) {
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

// A' m, modulo 2^16
typedef uint16_t Halves __attribute__((vector_size(32)));
template <class T>
QSR_INLINE constexpr void output_forms(const T* m, T* y) {
  y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
}
static_assert(computes(kA, output_forms<int>));

// A' m A of one vector: m has 16 positions at `stride` numbers.
QSR_INLINE void outputs_of(const int16_t* m, int64_t stride, Halves y[kTile * kTile]) {
  Halves columns[kForms][kTile];
#pragma GCC unroll 4
  for (int j = 0; j < kForms; ++j) {
    Halves p[kForms];
#pragma GCC unroll 4
    for (int i = 0; i < kForms; ++i)
      p[i] = (Halves)_mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(m + (kForms * i + j) * stride));
    output_forms(p, columns[j]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kTile; ++i) {
    const Halves row[kForms] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
    output_forms(row, y + kTile * i);
  }
}

struct Group {
  struct Products {
    alignas(64) int16_t m[kPositions][kTiles][2 * kBlock];  // of one span
    alignas(64) int32_t sums[kTiles][kVectors][kTile * kTile][kLanes];
  };

  struct Rows {
    const Products& products;
    QSR_INLINE void operator()(int64_t t, int v, int r, Int y[kTile]) const {
      for (int x = 0; x < kTile; ++x) y[x] = *(const Int*)products.sums[t][v][kTile * r + x];
    }
  };

  const int64_t channels, pitch, in_row;
  const Layout layout;
  const uint8_t* const weights;
  const int64_t spans, steps;
  const Bytes offset, offset11;
  uint8_t* const tiles;  // [groups of 64 channels, 16 positions, 6 tiles, 64]
  Products& products;

  QSR_INLINE Group(const Conv& job, uint8_t* tiles, Products& products)
      : channels(job.in.channels),
        pitch(job.in.pitch),
        in_row(job.in.row()),
        layout(job.shape),
        weights(static_cast<const uint8_t*>(job.weights)),
        spans(spans_of(weights)),
        steps(kSteps / spans),
        offset((Bytes)_mm256_set1_epi8(offset_at(0, 0, kOffsets[job.shape.in_bits], job.shape.in_signed))),
        offset11((Bytes)_mm256_set1_epi8(offset_at(1, 1, kOffsets[job.shape.in_bits], job.shape.in_signed))),
        tiles(tiles),
        products(products) {}

  // What is beyond the last channel of a group stays as it was: its weights are 0.
  QSR_INLINE void transform(const uint8_t* from, int64_t t) const {
    constexpr int64_t kStride = kTiles * kGroup;  // between positions
    const auto to = [&](int64_t c) {
      return tiles + c / kGroup * kPositions * kStride + t * kGroup + c % kGroup;
    };
    int64_t c = 0;
    for (; c + 32 <= channels; c += 32)
      transform_channels<32>(from + c, in_row, pitch, to(c), kStride, offset, offset11);
    if (c < channels)
      transform_channels<16>(from + c, in_row, pitch, to(c), kStride, few(offset),
                                   few(offset11));
  }
  static QSR_INLINE Vector<16>::Byte few(Bytes x) {
    return (Vector<16>::Byte)_mm256_castsi256_si128((__m256i)x);
  }

  // 4 Y of all input channels, into products.sums.
  QSR_INLINE Rows multiply(int64_t b, int64_t count) const {
    const int64_t block = b / kBlock;
    for (int64_t span = 0; span < layout.groups * spans; ++span) {
      const int64_t group = span / spans, step = span % spans * steps;
      const int8_t* w = reinterpret_cast<const int8_t*>(weights + layout.weights) +
                        ((block * layout.groups + group) * kPositions * kSteps + step) * kBlock * 4;
      const uint8_t* a = tiles + group * kPositions * kTiles * kGroup + 4 * step;
      for (int p = 0; p < kPositions; ++p, w += kSteps * kBlock * 4, a += kTiles * kGroup)
        multiply_position(a, w, steps, products.m[p][0]);
      const auto* lane_constants =
          reinterpret_cast<const __m256i*>(weights + layout.lane_constants) +
          (span * layout.blocks + block) * kTile * kTile * kVectors;
      for (int v = 0; v < kVectors; ++v) add(span == 0, b, v, count, lane_constants + v);
    }
    return {products};
  }

  // The products of one span, transformed back, less what their offsets add, and widened.
  QSR_INLINE void add(bool is_first, int64_t b, int v, int64_t count,
                      const __m256i* lane_constants) const {
    const __m256i constant = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
        weights + layout.constants + (b + v * kLanes) * sizeof(int32_t)));
    for (int64_t t = 0; t < count; ++t) {
      Halves y[kTile * kTile];
      outputs_of(products.m[0][t] + 2 * v * kLanes, kTiles * 2 * kBlock, y);
#pragma GCC unroll 4
      for (int i = 0; i < kTile * kTile; ++i) {
        const __m256i taken_off =
            _mm256_add_epi16((__m256i)y[i], _mm256_loadu_si256(lane_constants + i * kVectors));
        __m256i* to = reinterpret_cast<__m256i*>(products.sums[t][v][i]);
        const __m256i before = is_first ? constant : _mm256_load_si256(to);
        _mm256_store_si256(
            to, _mm256_add_epi32(before, _mm256_madd_epi16(taken_off, _mm256_set1_epi16(1))));
      }
    }
  }
};

}  // namespace

const ConvKernel kConvWinogradAvx2 = {
    "winograd-avx2", has_avx2, kTile, takes, laid_out_bytes, lay_out, scratch_bytes<Group>,
    drive<Group>};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const ConvKernel kConvWinogradAvx2 = {"winograd-avx2", has_avx2, 2, nullptr, nullptr, nullptr,
                                      nullptr, nullptr};
}  // namespace qsr

#endif
