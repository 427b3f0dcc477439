// Swin layers on AVX2. VPMADDUBSW adds two products u8 x s8 in 16 bits and saturates, so it is
// exact only while 2 * max(u8) * max|s8| <= 32767: u8 codes of a bits reach 2^a - 1 and s8 codes of
// w bits 2^(w-1), so 2 * (2^a - 1) * 2^(w-1) < 2^(a+w) <= 2^15 for a + w <= 15. Not for two times 8
// bits. (Adding up pairs in 16 bits before they are widened saves nothing: the float work hides
// it.)
#include "cpu.h"
#include "network/swin.h"

#if QSR_X86
#include <cmath>
#include <cstring>
#include <new>

#include "network/conv.h"
#pragma GCC push_options
#pragma GCC target("avx2")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX2
#include "network/finish.h"

#define QSR_PART 8
typedef Vector<QSR_PART>::Int IntPart;
typedef Vector<QSR_PART>::Float FloatPart;
typedef Vector<QSR_PART>::Byte BytePart;

QSR_INLINE FloatPart larger(FloatPart a, FloatPart b) {
  return (FloatPart)_mm256_max_ps((__m256)a, (__m256)b);
}
QSR_INLINE FloatPart smaller(FloatPart a, FloatPart b) {
  return (FloatPart)_mm256_min_ps((__m256)a, (__m256)b);
}

QSR_INLINE IntPart dot(IntPart sum, const uint8_t* four, const int8_t* weights) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  const __m256i pairs =
      _mm256_maddubs_epi16(_mm256_set1_epi32(bytes), _mm256_loadu_si256((const __m256i*)weights));
  return sum + (IntPart)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

#include "network/wide.h"

constexpr int kVectors = 1, kSideBySide = 2;
#include "network/swin_kernel.h"

}  // namespace

const SwinKernel kSwinAvx2 = {"avx2", has_avx2, 15, layer, attention, norm};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const SwinKernel kSwinAvx2 = {"avx2", has_avx2, 0, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
