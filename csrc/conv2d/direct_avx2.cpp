// Direct rung on AVX2. VPMADDUBSW adds two products u8 x s8 in 16 bits and saturates, so it is
// exact only while 2 * max(u8) * max|s8| <= 32,767, which `takes` checks: up to 8 bits by 7.
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

#include "vectors.h"

constexpr int kLanes = 8, kVectors = 2, kPixels = 4;
typedef Vector<kLanes>::Int Int;

QSR_INLINE Int dot(Int sum, int32_t four, const int8_t* weights) {
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_set1_epi32(four), _mm256_loadu_si256((const __m256i*)weights));
  return sum + (Int)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "conv2d/direct.h"

}  // namespace

void conv2d_direct_avx2(const Conv2d& job, int64_t first, int64_t last) {
  direct(job, first, last);
}
bool takes_direct_avx2(const Conv2d& job) {
  const int32_t largest_a = (1 << job.a_bits) - 1;
  const int32_t largest_w = job.w_signed ? 1 << (job.w_bits - 1) : (1 << job.w_bits) - 1;
  return largest_w <= 128 && 2 * largest_a * largest_w <= 32767;
}

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
void conv2d_direct_avx2(const Conv2d&, int64_t, int64_t) {}
bool takes_direct_avx2(const Conv2d&) { return false; }
}  // namespace qsr

#endif
