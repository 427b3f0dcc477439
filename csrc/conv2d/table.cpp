// Table rung: 2-bit convolution without multiplying, on AVX2.
//
// Two activations of 2 bits are a number of 4, and there are only 16 of those: for one pair of
// input channels and one output, the 16 possible sums w0 a0 + w1 a1 fit one register, and VPSHUFB
// looks up 32 of them at once. So 64 products cost one look-up and one addition of bytes. Pixels
// lie side by side, [pair of channels][pixel], which is why the stride along a row must be 1.
//
// Bounds: |w a| <= 9 for codes of at most 2 bits, so an entry is at most 18 and kRun = 7 of them
// add up to 126 < 128 in a byte before they are widened. Sums of 16 bits hold a whole output if
// taps * depth * max|a| * max|w| <= 32,767, which `takes` checks.
#include <cstring>
#include <vector>

#include "cpu.h"
#include "kernels.h"
#include "conv2d/pack.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

constexpr int64_t kRun = 7, kAcross = 32, kOutputs = 4;

int32_t largest(int bits, bool is_signed) { return is_signed ? 1 << (bits - 1) : (1 << bits) - 1; }

// Sums of kAcross pixels for kOutputs outputs, which share the indices: u8 at from[tap] + pair *
// stride. tables[k]: 16 bytes for each tap and pair of output k.
inline void look_up(const std::vector<const uint8_t*>& from, int64_t stride, int64_t pairs,
                    const int8_t* const* tables, int16_t (*sums)[kAcross]) {
  __m256i low[kOutputs] = {}, high[kOutputs] = {};
  int64_t at = 0;
  for (const uint8_t* tap : from)
    for (int64_t first = 0; first < pairs; first += kRun) {
      const int64_t end = first + kRun < pairs ? first + kRun : pairs;
      __m256i bytes[kOutputs] = {};
      for (int64_t pair = first; pair < end; ++pair, at += 16) {
        const __m256i index = _mm256_loadu_si256((const __m256i*)(tap + pair * stride));
#pragma GCC unroll 4
        for (int k = 0; k < kOutputs; ++k) {
          const __m128i table = _mm_loadu_si128((const __m128i*)(tables[k] + at));
          bytes[k] = _mm256_add_epi8(
              bytes[k], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), index));
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < kOutputs; ++k) {
        const __m128i left = _mm256_castsi256_si128(bytes[k]);
        low[k] = _mm256_add_epi16(low[k], _mm256_cvtepi8_epi16(left));
        high[k] =
            _mm256_add_epi16(high[k], _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes[k], 1)));
      }
    }
  for (int k = 0; k < kOutputs; ++k) {
    _mm256_storeu_si256((__m256i*)sums[k], low[k]);
    _mm256_storeu_si256((__m256i*)(sums[k] + 16), high[k]);
  }
}

// The 16 sums of each pair of channels: int8 [out, taps, pairs, 16].
std::vector<int8_t> tables_of(const Conv2d& job, int64_t depth, int32_t offset) {
  const int64_t taps = job.kernel_h * job.kernel_w, pairs = depth / 2;
  std::vector<int8_t> codes(job.out_channels * taps * depth), tables(codes.size() * 8);
  unpack_codes(job.w, reinterpret_cast<uint8_t*>(codes.data()), job.out_channels * taps, depth, 1,
               job.w_bits, job.w_signed);
  for (int64_t i = 0; i < job.out_channels * taps * pairs; ++i)
    for (int index = 0; index < 16; ++index)
      tables[i * 16 + index] = static_cast<int8_t>(codes[2 * i] * (index % 4 - offset) +
                                                   codes[2 * i + 1] * (index / 4 - offset));
  return tables;
}

}  // namespace

void conv2d_table(const Conv2d& job, int64_t first, int64_t last) {
  const int64_t depth = job.words * kWordBits, pairs = depth / 2, all = job.groups * depth;
  const int64_t taps = job.kernel_h * job.kernel_w, outputs = job.out_channels / job.groups;
  const int32_t offset = job.a_signed ? 1 << (job.a_bits - 1) : 0;
  const std::vector<int8_t> tables = tables_of(job, depth, offset);
  const int64_t stride = job.width + 2 * job.pad_w + kAcross;  // bytes from pair to pair
  std::vector<uint8_t> codes(job.width * all), rows(job.kernel_h * all / 2 * stride);
  std::vector<const uint8_t*> from(taps);
  for (int64_t i = first; i < last; ++i) {
    const int64_t n = i / job.out_h, y = i % job.out_h;
    for (int64_t dy = 0; dy < job.kernel_h; ++dy) {
      const int64_t iy = y * job.stride_h + dy - job.pad_h;
      uint8_t* to = rows.data() + dy * all / 2 * stride;
      std::memset(to, offset + 4 * offset, all / 2 * stride);
      if (iy < 0 || iy >= job.height) continue;
      unpack_codes(job.a + (n * job.height + iy) * job.width * job.groups * job.a_bits * job.words,
                   codes.data(), job.width, all, job.groups, job.a_bits, job.a_signed);
      for (int64_t x = 0; x < job.width; ++x)
        for (int64_t pair = 0; pair < all / 2; ++pair) {
          const int a0 = static_cast<int8_t>(codes[x * all + 2 * pair]) + offset;
          const int a1 = static_cast<int8_t>(codes[x * all + 2 * pair + 1]) + offset;
          to[pair * stride + job.pad_w + x] = static_cast<uint8_t>(a0 + 4 * a1);
        }
    }
    for (int64_t x = 0; x < job.out_w; x += kAcross)
      for (int64_t group = 0; group < job.groups; ++group)
        for (int64_t o = group * outputs; o < (group + 1) * outputs; o += kOutputs) {
          for (int64_t tap = 0; tap < taps; ++tap)
            from[tap] = rows.data() + x + tap % job.kernel_w +
                        (tap / job.kernel_w * all / 2 + group * pairs) * stride;
          const int64_t left = (group + 1) * outputs - o, kept = left < kOutputs ? left : kOutputs;
          const int8_t* table[kOutputs];
          for (int64_t k = 0; k < kOutputs; ++k)  // those beyond the last are computed and not kept
            table[k] = tables.data() + (o + (k < kept ? k : 0)) * taps * pairs * 16;
          int16_t sums[kOutputs][kAcross];
          look_up(from, stride, pairs, table, sums);
          for (int64_t r = 0; r < kAcross && x + r < job.out_w; ++r)
            for (int64_t k = 0; k < kept; ++k)
              job.out[(i * job.out_w + x + r) * job.out_channels + o + k] = sums[k][r];
        }
  }
}

bool takes_table(const Conv2d& job) {
  return job.a_bits <= 2 && job.w_bits <= 2 && job.stride_w == 1 &&
         job.kernel_h * job.kernel_w * job.words * kWordBits * largest(job.a_bits, job.a_signed) *
                 largest(job.w_bits, job.w_signed) <=
             32767;
}

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
void conv2d_table(const Conv2d&, int64_t, int64_t) {}
bool takes_table(const Conv2d&) { return false; }
}  // namespace qsr

#endif
