// The collapsed tail for AVX2 and FMA: 12 of 16 registers hold sums, 4 tiles x 24 outputs.
#include "network/tail.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace qsr {
namespace {

#pragma GCC diagnostic ignored "-Wpsabi"
#define QSR_INLINE __attribute__((always_inline)) inline

constexpr int kLanes = 8, kTiles = 4;
QSR_INLINE __m256 fma(float a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
}
#include "network/tail_kernel.h"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const TailKernel kTailAvx2 = {"avx2", supported, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const TailKernel kTailAvx2 = {"avx2", [] { return false; }, nullptr};
}  // namespace qsr

#endif
