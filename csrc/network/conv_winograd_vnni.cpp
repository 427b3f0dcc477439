// Winograd rung, AVX-512 VNNI: a 3x3 layer with 49 multiplications where the definition has 144.
//
// In one dimension, four outputs of a correlation with three weights, y_k = sum_i d_(k+i) g_i,
// follow from a product of polynomials, and that from its values at a few points. Here the points
// are 0, 1, -1, i, -i and infinity. The usual ones (0, 1, -1, 2, -2, infinity) need six products,
// but their transforms contain fours and fives: 4-bit inputs would grow to 11 bits. With i all
// coefficients of the inputs are 0, 1 or -1. The two complex points share one complex product,
// three real ones by Karatsuba, so there are seven products, and 4 y = A'[(H g) o (B'd)],
// everything in integers, with the matrices below. In two dimensions it is applied along x and
// along y: 7 x 7 products for a tile of 4x4 outputs, which are 16 Y; the 16 goes into the float
// scale. Summed over input channels, each of the 49 positions is a matrix product of bytes: what
// VPDPBUSD does, 64 products u8 x s8 in one instruction, added to s32.
//
// Why everything fits, for codes of at most 4 bits:
//   inputs: each form of one dimension adds at most 4 codes, as many with plus as with minus, but
//     for d1+d2+d3+d4. So two dimensions add at most 16 codes: half of them with minus, which spans
//     8 * 15 to each side, or all 16 with plus at position (1, 1), from -128 to 112 if signed and 0
//     to 240 if not. With an offset of 128 (0 at (1, 1) if unsigned) all lie in u8. The additions
//     before it may wrap: bytes are kept modulo 256. The offset is the same at all pixels (padding
//     is code 0, like any other), so its effect is one constant per output of a tile.
//   weights: at most 4 * 4 * 8 = 128 at the corners, and that only as -128; 4 * (8+8+8) = 96 where
//     one form has 4 g; 9 * 8 = 72 elsewhere: s8.
//   sums: s32. All additions wrap modulo 2^32, so only the result, 16 Y, has to fit: it does for up
//     to 2^31 / (16 * 9 * 8 * 15) = 124,000 input channels.
//
// The multiplication. The seven positions of a column are worked off so that what is added is added
// by continuing sums in registers: m1 and m2 side by side in 24 registers for 6 tiles x 32 outputs,
// which become m1+m2 and m1-m2; m5 alone, copied, and m3, m4 on top of the copies; with them y2 and
// y1 are done, and the rest of y0 and y3 starts the sums of m0 and m6. So four values are stored
// for seven.
//
// Outputs beyond the last block of 32 are one of 16, whose sums fill half the registers: as its loads
// are as many, it takes 7/6 of the time that its products need. So 48 channels take 0.69 of the time
// of 64 (0.40 ms and 0.59, Zen 5), where filling up would give nothing.
//
// One thread of a Zen 4, 64 -> 64 channels, 128x128: 134 MAC a cycle, against 113 of the same code
// with tiles of 2x2 (16 multiplications for 36; the AVX2 row). With the finish of conv1 130 and of
// conv2 124. VPDPBUSD gives 64 products a cycle, so the peak is 64 * 144 / 49 = 188.
//
// The loops are one asm block, because gcc 12 spills and copies some of 24 accumulators.
#include "cpu.h"
#include "network/conv.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX512
#include "network/finish.h"

constexpr int kMostBits = 4, kTile = 4, kForms = 7, kShift = 4;
constexpr int kTiles = 6, kVectors = 2, kLanes = 16;
// clang-format off
constexpr int kB[kForms][6] = {
    {1,  0,  0,  0, -1, 0},
    {0,  1,  1,  1,  1, 0},
    {0, -1,  1, -1,  1, 0},
    {0, -1, -1,  1,  1, 0},
    {0, -1,  1,  1, -1, 0},
    {0,  1,  0, -1,  0, 0},
    {0, -1,  0,  0,  0, 1},
};
constexpr int kH[kForms][3] = {
    {4,  0,  0},
    {1,  1,  1},
    {1, -1,  1},
    {1,  0, -1},
    {0,  1,  0},
    {1,  1, -1},
    {0,  0,  4},
};
constexpr int kA[kTile][kForms] = {
    {1, 1,  1,  2,  0,  2, 0},
    {0, 1, -1,  0,  2,  2, 0},
    {0, 1,  1, -2,  0, -2, 0},
    {0, 1, -1,  0, -2, -2, 1},
};
// clang-format on
// Of transformed codes, by their bits.
constexpr int kOffsets[kMostBits + 1] = {0, 128, 128, 128, 128};
// In which order the forms of a column are worked off.
constexpr int kOrder[kForms] = {1, 2, 5, 3, 4, 0, 6};

int64_t depth_of(const ConvShape& s) { return filled(s.in, 4); }

#include "network/conv_winograd.h"

// Layout: constants int32 [16 outputs of a tile, outputs], then of each block of 32 outputs (or the
// 16 that are left) the transformed weights s8 [7 columns, 7 of kOrder, depth / 4, outputs, 4].
int64_t constants_bytes(int64_t out) { return 16 * out * 4; }

int64_t laid_out_bytes(const ConvShape& s) {
  const int64_t out = filled(s.out, kMapLanes);
  return constants_bytes(out) + kForms * kForms * out * depth_of(s);
}

// Outputs of the block that begins at output b.
int64_t width_of_block(int64_t b, int64_t out) { return out - b < kBlock ? out - b : kBlock; }

void lay_out(const int8_t* weights, const ConvShape& s, void* to) {
  const int64_t depth = depth_of(s), out = filled(s.out, kMapLanes);
  int32_t* constants = static_cast<int32_t*>(to);
  int8_t* laid = static_cast<int8_t*>(to) + constants_bytes(out);
  for (int64_t o = 0; o < s.out; ++o) {
    const int64_t b = o / kBlock * kBlock, width = width_of_block(b, out);
    int8_t* block = laid + kForms * kForms * depth * b;
    int64_t added[kForms][kForms] = {};  // by the offsets, to each product
    for (int64_t c = 0; c < s.in; ++c) {
      int u[kForms][kForms];
      weight_forms(weights + o * 9 * s.in + c, s.in, u);
      for (int j = 0; j < kForms; ++j)
        for (int k = 0; k < kForms; ++k) {
          const int i = kOrder[k];
          const int64_t step = (j * kForms + k) * (depth / 4) + c / 4;
          block[(step * width + o - b) * 4 + c % 4] = static_cast<int8_t>(u[i][j]);
          added[i][j] += offset_at(i, j, kOffsets[s.in_bits], s.in_signed) * u[i][j];
        }
    }
    int64_t y[kTile][kTile];
    both_sides(kA, added, y);
    for (int i = 0; i < kTile * kTile; ++i)
      constants[i * out + o] = static_cast<int32_t>(-y[i / kTile][i % kTile]);
  }
}

// B' d, bytes modulo 256
typedef uint8_t Bytes __attribute__((vector_size(64)));
template <class T>
QSR_INLINE constexpr void input_forms(const T* d, T* t) {
  const T d13 = d[3] - d[1], d24 = d[4] - d[2], odd = d[1] + d[3], even = d[2] + d[4];
  t[0] = d[0] - d[4], t[1] = even + odd, t[2] = even - odd;
  t[3] = d13 + d24, t[4] = d13 - d24, t[5] = d[1] - d[3], t[6] = d[5] - d[1];
}
static_assert(computes(kB, input_forms<int>));

// B' D B + offset of 64 channels of one tile, u8 [7 columns, 7 of kOrder] at `stride`.
// some: whether there are only those in `mask`, of which no more is read or written.
template <bool some>
QSR_INLINE void transform_channels(const uint8_t* in, int64_t row, int64_t pixel, uint8_t* to,
                                   int64_t stride, Bytes offset, Bytes offset11, __mmask64 mask) {
  Bytes rows[kPatch][kForms];  // of the patch, transformed along x
  for (int i = 0; i < kPatch; ++i, in += row) {
    Bytes d[kPatch];
#pragma GCC unroll 6
    for (int k = 0; k < kPatch; ++k)
      d[k] = (Bytes)(some ? _mm512_maskz_loadu_epi8(mask, in + k * pixel)
                          : _mm512_loadu_si512(in + k * pixel));
    input_forms(d, rows[i]);
  }
  for (int j = 0; j < kForms; ++j, to += kForms * stride) {
    const Bytes d[kPatch] = {rows[0][j], rows[1][j], rows[2][j],
                             rows[3][j], rows[4][j], rows[5][j]};
    Bytes t[kForms];
    input_forms(d, t);
#pragma GCC unroll 7
    for (int k = 0; k < kForms; ++k) {
      const auto bytes = (__m512i)(t[kOrder[k]] + (k == 0 && j == 1 ? offset11 : offset));
      if (some)
        _mm512_mask_storeu_epi8(to + k * stride, mask, bytes);
      else
        _mm512_storeu_si512(to + k * stride, bytes);
    }
  }
}

// A' m, modulo 2^32: weights that are none, as somebody may hand them in, overflow
typedef uint32_t Sums __attribute__((vector_size(64)));
template <class T>
QSR_INLINE constexpr void output_forms(const T* m, T* y) {
  const T sum = m[1] + m[2], difference = m[1] - m[2], p = m[3] + m[5], q = m[4] + m[5];
  y[0] = m[0] + sum + p + p, y[1] = difference + q + q;
  y[2] = sum - p - p, y[3] = m[6] + difference - q - q;
}
static_assert(computes(kA, output_forms<int>));

// clang-format off
// The macros take W, QSR_WIDE or QSR_NARROW: what stands in W is for blocks of two vectors only.
#define QSR_WIDE(...) __VA_ARGS__
#define QSR_NARROW(...)
// Four input channels of one tile at two positions, times 2 x 32 (16) x 4 weights in zmm24..27.
#define QSR_TILE(W, first, s0, s1, second, s2, s3)                               \
  "vpbroadcastd " first ", %%zmm28\n\tvpbroadcastd " second ", %%zmm29\n\t"      \
  "vpdpbusd %%zmm24, %%zmm28, %%zmm" #s0 "\n\t"                                  \
  W("vpdpbusd %%zmm25, %%zmm28, %%zmm" #s1 "\n\t")                               \
  "vpdpbusd %%zmm26, %%zmm29, %%zmm" #s2 "\n\t"                                  \
  W("vpdpbusd %%zmm27, %%zmm29, %%zmm" #s3 "\n\t")
// All input channels at two positions; a, b: tiles 0 and 3 of the first, c, d: of the second.
#define QSR_LOOP(W, bytes, label)                                              \
  ".p2align 5\n" label ":\n\t"                                                 \
  "vmovdqu64 (%[w]), %%zmm24\n\t" W("vmovdqu64 64(%[w]), %%zmm25\n\t")         \
  "vmovdqu64 (%[w], %[position]), %%zmm26\n\t"                                 \
  W("vmovdqu64 64(%[w], %[position]), %%zmm27\n\t")                            \
  QSR_TILE(W, "(%[a])", 0, 1, "(%[c])", 12, 13)                                \
  QSR_TILE(W, "(%[a], %[depth])", 2, 3, "(%[c], %[depth])", 14, 15)            \
  QSR_TILE(W, "(%[a], %[depth], 2)", 4, 5, "(%[c], %[depth], 2)", 16, 17)      \
  QSR_TILE(W, "(%[b])", 6, 7, "(%[d])", 18, 19)                                \
  QSR_TILE(W, "(%[b], %[depth])", 8, 9, "(%[d], %[depth])", 20, 21)            \
  QSR_TILE(W, "(%[b], %[depth], 2)", 10, 11, "(%[d], %[depth], 2)", 22, 23)    \
  "add $4, %[a]\n\tadd $4, %[b]\n\tadd $4, %[c]\n\tadd $4, %[d]\n\t"           \
  "add $" bytes ", %[w]\n\tcmp %[w], %[end]\n\tjne " label "b\n\t"
// The same at one position: sums in zmm0..11 only.
#define QSR_LONE_TILE(W, address, s0, s1)                                             \
  "vpbroadcastd " address ", %%zmm28\n\tvpdpbusd %%zmm24, %%zmm28, %%zmm" #s0 "\n\t"  \
  W("vpdpbusd %%zmm25, %%zmm28, %%zmm" #s1 "\n\t")
#define QSR_LONE_LOOP(W, bytes, label)                                                        \
  ".p2align 5\n" label ":\n\t"                                                                \
  "vmovdqu64 (%[w]), %%zmm24\n\t" W("vmovdqu64 64(%[w]), %%zmm25\n\t")                        \
  QSR_LONE_TILE(W, "(%[a])", 0, 1) QSR_LONE_TILE(W, "(%[a], %[depth])", 2, 3)                 \
  QSR_LONE_TILE(W, "(%[a], %[depth], 2)", 4, 5) QSR_LONE_TILE(W, "(%[b])", 6, 7)              \
  QSR_LONE_TILE(W, "(%[b], %[depth])", 8, 9) QSR_LONE_TILE(W, "(%[b], %[depth], 2)", 10, 11)  \
  "add $4, %[a]\n\tadd $4, %[b]\n\t"                                                          \
  "add $" bytes ", %[w]\n\tcmp %[w], %[end]\n\tjne " label "b\n\t"
#define QSR_ZERO(k, p, q)                            \
  "vpxord %%zmm" #p ", %%zmm" #p ", %%zmm" #p "\n\t"  \
  "vpxord %%zmm" #q ", %%zmm" #q ", %%zmm" #q "\n\t"
// s = m1 + m2 and d = m1 - m2 to their places, row 2 and row 1 of the result.
#define QSR_HALF(k, p, q)                        \
  "vpaddd %%zmm" #q ", %%zmm" #p ", %%zmm28\n\t"  \
  "vpsubd %%zmm" #q ", %%zmm" #p ", %%zmm29\n\t"  \
  "vmovdqu64 %%zmm28, 1536+64*" #k "(%[to])\n\tvmovdqu64 %%zmm29, 768+64*" #k "(%[to])\n\t"
#define QSR_COPY(k, p, q) "vmovdqa64 %%zmm" #p ", %%zmm" #q "\n\t"
// y2 = s - 2 p and y1 = d + 2 q to memory; s + 2 p and d - 2 q stay.
#define QSR_WHOLE(k, p, q)                                                                     \
  "vpaddd %%zmm" #p ", %%zmm" #p ", %%zmm" #p "\n\t"                                            \
  "vpaddd %%zmm" #q ", %%zmm" #q ", %%zmm" #q "\n\t"                                            \
  "vmovdqu64 1536+64*" #k "(%[to]), %%zmm28\n\tvmovdqu64 768+64*" #k "(%[to]), %%zmm29\n\t"    \
  "vpsubd %%zmm" #p ", %%zmm28, %%zmm30\n\tvpaddd %%zmm" #q ", %%zmm29, %%zmm31\n\t"           \
  "vpaddd %%zmm" #p ", %%zmm28, %%zmm" #p "\n\tvpsubd %%zmm" #q ", %%zmm29, %%zmm" #q "\n\t"   \
  "vmovdqu64 %%zmm30, 1536+64*" #k "(%[to])\n\tvmovdqu64 %%zmm31, 768+64*" #k "(%[to])\n\t"
#define QSR_STORE(k, p, q) \
  "vmovdqu64 %%zmm" #p ", 64*" #k "(%[to])\n\tvmovdqu64 %%zmm" #q ", 2304+64*" #k "(%[to])\n\t"
#define QSR_EACH(W, macro)                                                        \
  macro(0, 0, 12) W(macro(1, 1, 13)) macro(2, 2, 14) W(macro(3, 3, 15))           \
  macro(4, 4, 16) W(macro(5, 5, 17)) macro(6, 6, 18) W(macro(7, 7, 19))           \
  macro(8, 8, 20) W(macro(9, 9, 21)) macro(10, 10, 22) W(macro(11, 11, 23))

#define QSR_COLUMN(W, bytes)                                                      \
  asm volatile(                                                                   \
      QSR_EACH(W, QSR_ZERO)                                                       \
      QSR_LOOP(W, bytes, "1")                                                     \
      QSR_EACH(W, QSR_HALF)                                                       \
      QSR_EACH(W, QSR_ZERO)                                                       \
      "add %[position], %[w]\n\tlea (%[w], %[position]), %[end]\n\t"              \
      "lea (%[c], %[skip]), %[a]\n\tlea (%[d], %[skip]), %[b]\n\t"                \
      QSR_LONE_LOOP(W, bytes, "2")                                                \
      QSR_EACH(W, QSR_COPY)                                                       \
      "lea (%[w], %[position]), %[end]\n\t"                                       \
      "add %[skip], %[a]\n\tadd %[skip], %[b]\n\t"                                \
      "lea (%[a], %[stride]), %[c]\n\tlea (%[b], %[stride]), %[d]\n\t"            \
      QSR_LOOP(W, bytes, "3")                                                     \
      QSR_EACH(W, QSR_WHOLE)                                                      \
      "add %[position], %[w]\n\tlea (%[w], %[position]), %[end]\n\t"              \
      "lea (%[c], %[skip]), %[a]\n\tlea (%[d], %[skip]), %[b]\n\t"                \
      "lea (%[a], %[stride]), %[c]\n\tlea (%[b], %[stride]), %[d]\n\t"            \
      QSR_LOOP(W, bytes, "4")                                                     \
      QSR_EACH(W, QSR_STORE)                                                      \
      : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d), [w] "+r"(w), [end] "+r"(end)   \
      : [depth] "r"(depth), [position] "r"(position), [skip] "r"(skip), [stride] "r"(stride), \
        [to] "r"(to)                                                              \
      : "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9",    \
        "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18",   \
        "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27",   \
        "zmm28", "zmm29", "zmm30", "zmm31", "memory", "cc")
// clang-format on

// The four output rows of one column of positions, for 6 tiles x 32 (wide) or 16 outputs.
// in: u8 [7 of kOrder] at `stride`, [6, depth]; weights: s8 [7, depth / 4, 32 or 16, 4];
// to: [4, 6, 2, 16].
template <bool wide>
QSR_INLINE void multiply_column(const uint8_t* in, int64_t stride, int64_t depth,
                                const int8_t* weights, int32_t* to) {
  const uint8_t *a = in, *b = in + 3 * depth, *c = in + stride, *d = c + 3 * depth;
  const int8_t* w = weights;
  const int64_t position = depth * (wide ? 32 : 16);
  const int8_t* end = w + position;
  const int64_t skip = stride - depth;  // from the end of a position to the next
  if constexpr (wide)
    QSR_COLUMN(QSR_WIDE, "128");
  else
    QSR_COLUMN(QSR_NARROW, "64");
}

struct Group {
  typedef int32_t Products[kForms][kTile][kTiles][kVectors][kLanes];  // transformed along y

  // Transforms them along x too, and takes off what the offsets add.
  struct Rows {
    const Products& products;
    const int32_t* constants;
    int64_t out;
    QSR_INLINE void operator()(int64_t t, int v, int r, Int y[kTile]) const {
      Sums column[kForms], sums[kTile];
#pragma GCC unroll 7
      for (int j = 0; j < kForms; ++j) column[j] = *(const Sums*)products[j][r][t][v];
      output_forms(column, sums);
#pragma GCC unroll 4
      for (int x = 0; x < kTile; ++x)
        y[x] = (Int)(sums[x] + *(const Vector<kLanes>::Unsigned*)(constants + (kTile * r + x) * out +
                                                                  v * kLanes));
    }
  };

  const int64_t depth, pitch, in_row, out, stride;  // stride: between positions
  const __mmask64 left;  // of the channels after the last 64
  const int32_t* const constants;
  const int8_t* const weights;
  const Bytes offset, offset11;
  uint8_t* const tiles;  // [7 columns, 7 of kOrder, 6 tiles, depth]
  Products& products;

  QSR_INLINE Group(const Conv& job, uint8_t* tiles, Products& products)
      : depth(depth_of(job.shape)),
        pitch(job.in.pitch),
        in_row(job.in.row()),
        out(filled(job.shape.out, kMapLanes)),
        stride(kTiles * depth),
        left((__mmask64{1} << depth % 64) - 1),
        constants(static_cast<const int32_t*>(job.weights)),
        weights(static_cast<const int8_t*>(job.weights) + constants_bytes(out)),
        offset((Bytes)_mm512_set1_epi8(offset_at(0, 0, kOffsets[job.shape.in_bits], job.shape.in_signed))),
        offset11((Bytes)_mm512_set1_epi8(offset_at(1, 1, kOffsets[job.shape.in_bits], job.shape.in_signed))),
        tiles(tiles),
        products(products) {}

  QSR_INLINE void transform(const uint8_t* from, int64_t t) const {
    uint8_t* to = tiles + t * depth;
    int64_t c = 0;
    for (; c + 64 <= depth; c += 64)
      transform_channels<false>(from + c, in_row, pitch, to + c, stride, offset, offset11, 0);
    if (c < depth)
      transform_channels<true>(from + c, in_row, pitch, to + c, stride, offset, offset11, left);
  }

  QSR_INLINE Rows multiply(int64_t b, int64_t) const {
    const int64_t width = width_of_block(b, out);
    const int8_t* w = weights + kForms * kForms * depth * b;
    for (int64_t j = 0; j < kForms; ++j, w += kForms * depth * width) {
      const uint8_t* in = tiles + kForms * j * stride;
      if (width == kBlock)
        multiply_column<true>(in, stride, depth, w, products[j][0][0][0]);
      else
        multiply_column<false>(in, stride, depth, w, products[j][0][0][0]);
    }
    return {products, constants + b, out};
  }
};

}  // namespace

const ConvKernel kConvWinogradVnni = {
    "winograd-vnni", has_vnni, kTile, takes, laid_out_bytes, lay_out, scratch_bytes<Group>,
    drive<Group>};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const ConvKernel kConvWinogradVnni = {"winograd-vnni", has_vnni, 4, nullptr, nullptr, nullptr,
                                      nullptr, nullptr};
}  // namespace qsr

#endif
