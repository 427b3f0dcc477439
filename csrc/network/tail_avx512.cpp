// The collapsed tail for AVX-512: 24 of 32 registers hold sums, 8 tiles x 48 outputs.
#include "network/tail.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f")
#include <immintrin.h>

namespace qsr {
namespace {

#pragma GCC diagnostic ignored "-Wpsabi"
#define QSR_INLINE __attribute__((always_inline)) inline

constexpr int kLanes = 16, kTiles = 8;
QSR_INLINE __m512 fma(float a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
}
#include "network/tail_kernel.h"

bool supported() { return __builtin_cpu_supports("avx512f"); }

}  // namespace

const TailKernel kTailAvx512 = {"avx512", supported, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const TailKernel kTailAvx512 = {"avx512", [] { return false; }, nullptr};
}  // namespace qsr

#endif
