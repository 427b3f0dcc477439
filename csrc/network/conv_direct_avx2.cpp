// Direct rung on AVX2. VPMADDUBSW adds two products u8 x s8 in 16 bits and saturates: 2 * 255 * 64
// fits, so weights of up to 7 bits do. Those of 8 bits are taken apart, w = 16 high + low, which are
// two multiplications of at most 255 * 15 each.
#include <type_traits>

#include "cpu.h"
#include "network/conv.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX2
#include "network/finish.h"

constexpr int kLanes = 8, kMostVectors = 2;
constexpr int kPixels[kMostVectors + 1] = {0, 6, 4};
typedef Vector<kLanes>::Int Int;

bool wide(const ConvShape& s) { return s.weight_bits == 8; }

template <bool is_signed>
QSR_INLINE Int four(const uint8_t* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, 4);
  const __m256i codes = _mm256_set1_epi32(bytes);
  return (Int)(is_signed ? _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) : codes);
}

QSR_INLINE Int dot_by(Int sum, Int codes, __m256i weights, int16_t times) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, weights);
  return sum + (Int)_mm256_madd_epi16(pairs, _mm256_set1_epi16(times));
}

template <bool is_wide>
struct Weights {
  __m256i low, high;
  Weights() = default;
  QSR_INLINE explicit Weights(const int8_t* from)
      : low(_mm256_loadu_si256((const __m256i*)from)),
        high(is_wide ? _mm256_loadu_si256((const __m256i*)(from + 4 * kLanes)) : low) {}
  QSR_INLINE Int dot(Int sum, Int codes) const {
    sum = dot_by(sum, codes, low, 1);
    return is_wide ? dot_by(sum, codes, high, 16) : sum;
  }
};

#include "network/conv_direct.h"

bool takes(const ConvShape&) { return true; }
void run(const Conv& job, int64_t first, int64_t last, void*) {
  const bool is_signed = job.shape.in_signed;
  if (wide(job.shape))
    (is_signed ? direct_rows<true, true> : direct_rows<false, true>)(job, first, last);
  else
    (is_signed ? direct_rows<true, false> : direct_rows<false, false>)(job, first, last);
}

}  // namespace

const ConvKernel kConvDirectAvx2 = {"direct-avx2", has_avx2, kRows, takes, laid_out_bytes,
                                    lay_out,   scratch_bytes, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const ConvKernel kConvDirectAvx2 = {"direct-avx2", has_avx2, 1, nullptr, nullptr, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
