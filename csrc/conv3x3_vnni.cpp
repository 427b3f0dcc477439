// Winograd rung, AVX-512 VNNI: a 3x3 layer with 16 multiplications where the definition has 36.
//
// Winograd's F(2x2, 3x3) computes a tile of 2x2 outputs Y from a tile of 4x4 inputs D and the 3x3
// weights G as   Y = A' [ (B' D B) o (H G H') ] A / 4   with o the product element by element and
//
//          1  0 -1  0             2  0  0
//     B' = 0  1  1  0      H  =   1  1  1      A' = 1  1  1  0
//          0 -1  1  0             1 -1  1           0  1 -1 -1
//          0  1  0 -1             0  0  2
//
// H is twice the usual matrix: with it everything is an integer, the result is exactly 4 Y, and the 4
// goes into the float scale. Summed over input channels, each of the 16 positions of the product is
// a matrix product of bytes, which is what VPDPBUSD does: 64 products u8 x s8 in one instruction.
//
// Why everything fits, for codes of at most 4 bits:
//   inputs: two additions of codes spanning 2^b - 1, so B' D B spans 4 (2^b - 1) <= 60. With an offset
//     of 4 * 2^(b-1) = 32 at 4 bits it lies in u8: signed 0..62, unsigned 2..92. An offset is the
//     same at all pixels (padding is code 0, like any other), so its effect is one constant per
//     output. A constant input reaches position (1, 1) alone, fourfold: unsigned codes, which are
//     signed ones plus 2^(b-1), need no offset there.
//   weights: |H G H'| <= 9 * 8 = 72 in s8, at every position (8 * 9 at (1, 1), 2 * 2 * 8 at corners).
//   sums: s32. Every position sums channels * 92 * 72 < 2^31 for up to 2^18 channels, and the
//     transforms after it at most nine of these.
//
// The multiplication. A column of positions (0..3, j) belongs together: its outputs are needed only as
// s0 = m0 + m1 + m2 and s1 = m1 - m2 - m3. So m1 and m2 are computed side by side, in 24 registers for
// 6 tiles x 32 outputs, turned into m1 + m2 and m1 - m2, and m0 and -m3 (of negated weights) are added
// by continuing the sums. That halves what is written to memory and read again. One thread of a Zen 4,
// 64 -> 64 channels, sums out: 113 MAC a cycle, against 102 with a product stored for each position.
// Of the peak of the instruction, 64 products a cycle times 36 / 16, that is 78 %; the product stage
// alone reaches 94 %. (`qsr bench kernel` prints the whole; the parts were timed once, see docs/log.md.)
//
// The loop is one asm block, because gcc 12 spills and copies some of 24 accumulators (3 % slower).
#include "conv3x3.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cstring>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#include <immintrin.h>

namespace qsr {
namespace {

#include "finish.h"

constexpr int kTiles = 6, kLanes = 16, kVectors = 2, kBlock = kVectors * kLanes;
constexpr int kOrder[4] = {1, 2, 0, 3};  // in which the positions of a column are worked off
typedef Vector<kLanes>::Int Int;

// Layout: constants int32 [4 outputs of a tile, out_channels], then the transformed weights
// s8 [out_channels / 32, 4 columns, 4 of kOrder, in_channels / 4, 32, 4].
int64_t constants_bytes(int64_t out) { return 4 * out * 4; }

int64_t laid_out_bytes(int64_t in, int64_t out) { return constants_bytes(out) + 16 * out * in; }

int offset_at(int row, int column, bool is_signed, int bits) {
  return row == 1 && column == 1 && !is_signed ? 0 : 4 << (bits - 1);
}

void lay_out(const int8_t* weights, int64_t in, int64_t out, bool is_signed, int bits, void* to) {
  int32_t* constants = static_cast<int32_t*>(to);
  int8_t* laid = static_cast<int8_t*>(to) + constants_bytes(out);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t c = 0; c < in; ++c) {
      const int8_t* g = weights + o * 9 * in + c;
      int rows[4][3], u[4][4];  // H G, H G H'
      for (int j = 0; j < 3; ++j) {
        const int g0 = g[j * in], g1 = g[(3 + j) * in], g2 = g[(6 + j) * in];
        rows[0][j] = 2 * g0, rows[1][j] = g0 + g1 + g2, rows[2][j] = g0 - g1 + g2, rows[3][j] = 2 * g2;
      }
      for (int i = 0; i < 4; ++i) {
        const int* r = rows[i];
        u[i][0] = 2 * r[0], u[i][1] = r[0] + r[1] + r[2], u[i][2] = r[0] - r[1] + r[2], u[i][3] = 2 * r[2];
      }
      int s[2][4];  // what the offsets add, through the output transform
      for (int j = 0; j < 4; ++j) {
        int x[4];
        for (int i = 0; i < 4; ++i) x[i] = offset_at(i, j, is_signed, bits) * u[i][j];
        s[0][j] = x[0] + x[1] + x[2], s[1][j] = x[1] - x[2] - x[3];
        for (int k = 0; k < 4; ++k) {
          const int64_t at = (((o / kBlock * 4 + j) * 4 + k) * (in / 4) + c / 4) * kBlock + o % kBlock;
          const int value = u[kOrder[k]][j];
          laid[at * 4 + c % 4] = static_cast<int8_t>(kOrder[k] == 3 ? -value : value);
        }
      }
      for (int i = 0; i < 2; ++i) {
        constants[2 * i * out + o] -= s[i][0] + s[i][1] + s[i][2];
        constants[(2 * i + 1) * out + o] -= s[i][1] - s[i][2] - s[i][3];
      }
    }
  }
}

// B' D B + offset for 64 channels of one tile, u8 [4 columns, 4 of kOrder] at `stride`.
QSR_INLINE void transform(const uint8_t* in, int64_t row, int64_t pixel, uint8_t* to, int64_t stride,
                          __m512i offset, __m512i offset11) {
  __m512i r[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, in += row) {
    const __m512i d0 = _mm512_loadu_si512(in), d1 = _mm512_loadu_si512(in + pixel);
    const __m512i d2 = _mm512_loadu_si512(in + 2 * pixel), d3 = _mm512_loadu_si512(in + 3 * pixel);
    r[i][0] = _mm512_sub_epi8(d0, d2), r[i][1] = _mm512_add_epi8(d1, d2);
    r[i][2] = _mm512_sub_epi8(d2, d1), r[i][3] = _mm512_sub_epi8(d1, d3);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j, to += 4 * stride) {
    const __m512i t0 = _mm512_sub_epi8(r[0][j], r[2][j]), t1 = _mm512_add_epi8(r[1][j], r[2][j]);
    const __m512i t2 = _mm512_sub_epi8(r[2][j], r[1][j]), t3 = _mm512_sub_epi8(r[1][j], r[3][j]);
    _mm512_storeu_si512(to, _mm512_add_epi8(t1, j == 1 ? offset11 : offset));
    _mm512_storeu_si512(to + stride, _mm512_add_epi8(t2, offset));
    _mm512_storeu_si512(to + 2 * stride, _mm512_add_epi8(t0, offset));
    _mm512_storeu_si512(to + 3 * stride, _mm512_add_epi8(t3, offset));
  }
}

// Four input channels of one tile at two positions, times 2 x 32 x 4 weights in zmm24..27.
#define QSR_TILE(first, s0, s1, second, s2, s3)                             \
  "vpbroadcastd " first ", %%zmm28\n\tvpbroadcastd " second ", %%zmm29\n\t" \
  "vpdpbusd %%zmm24, %%zmm28, %%zmm" #s0 "\n\t"                             \
  "vpdpbusd %%zmm25, %%zmm28, %%zmm" #s1 "\n\t"                             \
  "vpdpbusd %%zmm26, %%zmm29, %%zmm" #s2 "\n\t"                             \
  "vpdpbusd %%zmm27, %%zmm29, %%zmm" #s3 "\n\t"
// All input channels at two positions; a, b: tiles 0 and 3 of the first, c, d: of the second.
#define QSR_LOOP(label)                                                     \
  ".p2align 5\n" label ":\n\t"                                              \
  "vmovdqu64 (%[w]), %%zmm24\n\tvmovdqu64 64(%[w]), %%zmm25\n\t"            \
  "vmovdqu64 (%[w], %[position]), %%zmm26\n\t"                              \
  "vmovdqu64 64(%[w], %[position]), %%zmm27\n\t"                            \
  QSR_TILE("(%[a])", 0, 1, "(%[c])", 12, 13)                                \
  QSR_TILE("(%[a], %[depth])", 2, 3, "(%[c], %[depth])", 14, 15)            \
  QSR_TILE("(%[a], %[depth], 2)", 4, 5, "(%[c], %[depth], 2)", 16, 17)      \
  QSR_TILE("(%[b])", 6, 7, "(%[d])", 18, 19)                                \
  QSR_TILE("(%[b], %[depth])", 8, 9, "(%[d], %[depth])", 20, 21)            \
  QSR_TILE("(%[b], %[depth], 2)", 10, 11, "(%[d], %[depth], 2)", 22, 23)    \
  "add $4, %[a]\n\tadd $4, %[b]\n\tadd $4, %[c]\n\tadd $4, %[d]\n\t"        \
  "add $128, %[w]\n\tcmp %[w], %[end]\n\tjne " label "b\n\t"
#define QSR_ZERO(r, s) \
  "vpxord %%zmm" #r ", %%zmm" #r ", %%zmm" #r "\n\tvpxord %%zmm" #s ", %%zmm" #s ", %%zmm" #s "\n\t"
#define QSR_BUTTERFLY(p, q)                                                          \
  "vmovdqa64 %%zmm" #p ", %%zmm28\n\tvpaddd %%zmm" #q ", %%zmm" #p ", %%zmm" #p "\n\t" \
  "vpsubd %%zmm" #q ", %%zmm28, %%zmm" #q "\n\t"
#define QSR_STORE(k, p, q) \
  "vmovdqu64 %%zmm" #p ", 64*" #k "(%[to])\n\tvmovdqu64 %%zmm" #q ", 768+64*" #k "(%[to])\n\t"

// s0 and s1 of one column of positions, for 6 tiles x 32 outputs.
// in: u8 [4 of kOrder] at `stride`, [6, depth]; weights: s8 [4, depth / 4, 32, 4]; to: [2, 6, 2, 16].
QSR_INLINE void multiply(const uint8_t* in, int64_t stride, int64_t depth, const int8_t* weights,
                         int32_t* to) {
  const uint8_t *a = in, *b = in + 3 * depth, *c = in + stride, *d = c + 3 * depth;
  const int8_t* w = weights;
  const int64_t position = depth * kBlock;
  const int8_t* end = w + position;
  const int64_t next = 2 * stride - depth;  // from the end of two positions to the next two
  asm volatile(
      QSR_ZERO(0, 1) QSR_ZERO(2, 3) QSR_ZERO(4, 5) QSR_ZERO(6, 7) QSR_ZERO(8, 9) QSR_ZERO(10, 11)
      QSR_ZERO(12, 13) QSR_ZERO(14, 15) QSR_ZERO(16, 17) QSR_ZERO(18, 19) QSR_ZERO(20, 21)
      QSR_ZERO(22, 23)
      QSR_LOOP("1")
      QSR_BUTTERFLY(0, 12) QSR_BUTTERFLY(1, 13) QSR_BUTTERFLY(2, 14) QSR_BUTTERFLY(3, 15)
      QSR_BUTTERFLY(4, 16) QSR_BUTTERFLY(5, 17) QSR_BUTTERFLY(6, 18) QSR_BUTTERFLY(7, 19)
      QSR_BUTTERFLY(8, 20) QSR_BUTTERFLY(9, 21) QSR_BUTTERFLY(10, 22) QSR_BUTTERFLY(11, 23)
      "add %[position], %[w]\n\tlea (%[w], %[position]), %[end]\n\t"
      "add %[next], %[a]\n\tadd %[next], %[b]\n\tadd %[next], %[c]\n\tadd %[next], %[d]\n\t"
      QSR_LOOP("2")
      QSR_STORE(0, 0, 12) QSR_STORE(1, 1, 13) QSR_STORE(2, 2, 14) QSR_STORE(3, 3, 15)
      QSR_STORE(4, 4, 16) QSR_STORE(5, 5, 17) QSR_STORE(6, 6, 18) QSR_STORE(7, 7, 19)
      QSR_STORE(8, 8, 20) QSR_STORE(9, 9, 21) QSR_STORE(10, 10, 22) QSR_STORE(11, 11, 23)
      : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d), [w] "+r"(w), [end] "+r"(end)
      : [depth] "r"(depth), [position] "r"(position), [next] "r"(next), [to] "r"(to)
      : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",
        "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20",
        "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28", "zmm29", "memory",
        "cc");
}

#undef QSR_TILE
#undef QSR_LOOP
#undef QSR_ZERO
#undef QSR_BUTTERFLY
#undef QSR_STORE

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

// The rest of the output transform for `count` tiles from tile `first` on, 16 channels, and what
// follows. m: [4 columns][s0, s1][6 tiles][2][16], at the right vector.
template <class Use>
QSR_INLINE void outputs(const Conv3x3& job, const int32_t* m, const int32_t* constants, int64_t first,
                        int64_t count, int64_t map_channels, const Use& use) {
  const int64_t columns = (job.in.width + 1) / 2, out = job.out_channels;
  const int64_t map_row = job.in.width * map_channels;
  const int64_t code_row = (whole_tiles(job.in.width) + 2) * out;
  constexpr int64_t kColumn = 2 * kTiles * kBlock;
  int64_t ty = first / columns, tx = first % columns;
  for (int64_t t = 0; t < count; ++t, m += kBlock) {
    for (int k = 0; k < 2 && 2 * ty + k < job.in.height; ++k) {
      const int32_t* s = m + k * kTiles * kBlock;
      const Int s0 = *(const Int*)s, s1 = *(const Int*)(s + kColumn);
      const Int s2 = *(const Int*)(s + 2 * kColumn), s3 = *(const Int*)(s + 3 * kColumn);
      const int32_t* constant = constants + 2 * k * out;
      const int64_t at = (2 * ty + k) * map_row + 2 * tx * map_channels;
      const int64_t code_at = (2 * ty + k + 1) * code_row + (2 * tx + 1) * out;
      use(s0 + s1 + s2 + *(const Int*)constant, at, code_at);
      if (2 * tx + 1 < job.in.width)
        use(s1 - s2 - s3 + *(const Int*)(constant + out), at + map_channels, code_at + out);
    }
    if (++tx == columns) tx = 0, ++ty;
  }
}

void run(const Conv3x3& job, int64_t first, int64_t last) {
  const CodeMap& in = job.in;
  const int64_t depth = in.channels, columns = (in.width + 1) / 2, stride = kTiles * depth;
  const int32_t* constants = static_cast<const int32_t*>(job.weights);
  const int8_t* weights =
      static_cast<const int8_t*>(job.weights) + constants_bytes(job.out_channels);
  const __m512i offset = _mm512_set1_epi8(offset_at(0, 0, job.in_signed, job.in_bits));
  const __m512i offset11 = _mm512_set1_epi8(offset_at(1, 1, job.in_signed, job.in_bits));
  // 6 KB a group of 64 channels and 12 KB: both in the first-level cache.
  uint8_t* tiles = static_cast<uint8_t*>(_mm_malloc(16 * stride, 64));
  alignas(64) int32_t m[4][2][kTiles][kVectors][kLanes];
  for (int64_t n = first * columns; n < last * columns; n += kTiles) {  // tiles across rows
    const int64_t count = last * columns - n < kTiles ? last * columns - n : kTiles;
    for (int64_t t = 0; t < count; ++t) {
      const uint8_t* from = in.at(2 * ((n + t) / columns) - 1, 2 * ((n + t) % columns) - 1);
      for (int64_t c = 0; c < depth; c += kMapChannels)
        transform(from + c, in.row(), depth, tiles + t * depth + c, stride, offset, offset11);
    }
    for (int64_t b = 0; b < job.out_channels; b += kBlock) {
      for (int64_t j = 0; j < 4; ++j)
        multiply(tiles + 4 * j * stride, stride, depth, weights + (4 * b / kBlock + j) * 4 * depth * kBlock,
                 m[j][0][0][0]);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t c = b + v * kLanes;
        const int32_t *sums = m[0][0][0][v], *constant = constants + c;
        const Finish& f = job.finish;
        if (f.sums) {
          const SumStore store{f.sums + c, f.sum_channels - c};
          outputs(job, sums, constant, n, count, f.sum_channels, store);
        } else if (f.residual) {
          const Finisher<kLanes, true> finish(f, c, 0.25f);
          outputs(job, sums, constant, n, count, job.out_channels, finish);
        } else {
          const Finisher<kLanes, false> finish(f, c, 0.25f);
          outputs(job, sums, constant, n, count, job.out_channels, finish);
        }
      }
    }
  }
  _mm_free(tiles);
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Conv3x3Kernel kConv3x3Vnni = {"winograd-vnni", supported, 2, 4, laid_out_bytes, lay_out, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const Conv3x3Kernel kConv3x3Vnni = {"winograd-vnni", [] { return false; }, 2, 0, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
