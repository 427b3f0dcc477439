// The collapsed tail for AVX-512: 24 of 32 registers hold sums, 8 tiles x 48 outputs.
#include "cpu.h"
#include "network/tail.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f")
#include <immintrin.h>

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 16, kTiles = 8;
typedef Vector<kLanes>::Float Lanes;
QSR_INLINE Lanes fma(float a, Lanes b, Lanes c) {
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
}

#include "network/tail_kernel.h"

}  // namespace

const TailKernel kTailAvx512 = {"avx512", has_avx512, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const TailKernel kTailAvx512 = {"avx512", has_avx512, nullptr};
}  // namespace qsr

#endif
