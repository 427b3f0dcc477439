// The collapsed tail for AVX2 and FMA: 12 of 16 registers hold sums, 4 tiles x 24 outputs.
#include "cpu.h"
#include "network/tail.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include <immintrin.h>

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 8, kTiles = 4;
typedef Vector<kLanes>::Float Lanes;
QSR_INLINE Lanes fma(float a, Lanes b, Lanes c) {
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
}

#include "network/tail_kernel.h"

}  // namespace

const TailKernel kTailAvx2 = {"avx2", has_fma, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const TailKernel kTailAvx2 = {"avx2", has_fma, nullptr};
}  // namespace qsr

#endif
