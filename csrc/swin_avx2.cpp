// Swin layers on AVX2. VPMADDUBSW adds two products u8 x s8 in 16 bits and saturates, so it is exact
// only while 2 * max(u8) * max|s8| <= 32767: u8 codes of a bits reach 2^a - 1 and s8 codes of w bits
// 2^(w-1), so 2 * (2^a - 1) * 2^(w-1) < 2^(a+w) <= 2^15 for a + w <= 15. Not for two times 8 bits.
#include "swin.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cmath>
#include <cstring>
#include <new>

#include "conv3x3.h"
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#include "finish.h"

constexpr int kVectors = 1, kSideBySide = 1;
typedef Vector<kRowLanes>::Int Int;
typedef Vector<kRowLanes>::Float Float;

QSR_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }
QSR_INLINE Float smaller(Float a, Float b) { return a < b ? a : b; }

QSR_INLINE __m256i dot8(__m256i sum, __m256i four, const int8_t* weights) {
  const __m256i pairs = _mm256_maddubs_epi16(four, _mm256_loadu_si256((const __m256i*)weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

QSR_INLINE Int dot(Int sum, const uint8_t* four, const int8_t* weights) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  const __m256i a = _mm256_set1_epi32(bytes);
  typedef int32_t Half __attribute__((vector_size(32)));
  const Half low = __builtin_shufflevector(sum, sum, 0, 1, 2, 3, 4, 5, 6, 7);
  const Half high = __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector((Half)dot8((__m256i)low, a, weights),
                                 (Half)dot8((__m256i)high, a, weights + 32), 0, 1, 2, 3, 4, 5, 6, 7, 8,
                                 9, 10, 11, 12, 13, 14, 15);
}

#include "swin_kernel.h"

bool supported() { return __builtin_cpu_supports("avx2"); }

}  // namespace

const SwinKernel kSwinAvx2 = {"avx2", supported, 15, layer, attention, norm};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const SwinKernel kSwinAvx2 = {"avx2", [] { return false; }, 0, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
