// Direct rung on AVX-512 VNNI: VPDPBUSD is 64 products u8 x s8, summed by fours into 32 bits, exact
// for all bytes. Weights must fit s8: unsigned ones have 7 bits at most.
#include <cstring>
#include <vector>

#include "cpu.h"
#include "kernels.h"
#include "conv2d/pack.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vnni")
#include <immintrin.h>

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 16, kVectors = 4, kPixels = 4;
typedef Vector<kLanes>::Int Int;

QSR_INLINE Int dot(Int sum, int32_t four, const int8_t* weights) {
  return (Int)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four),
                                  _mm512_loadu_si512(weights));
}

#include "conv2d/direct.h"

}  // namespace

void conv2d_direct_vnni(const Conv2d& job, int64_t first, int64_t last) {
  direct(job, first, last);
}
bool takes_direct_vnni(const Conv2d& job) { return job.w_signed || job.w_bits < 8; }
}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
void conv2d_direct_vnni(const Conv2d&, int64_t, int64_t) {}
bool takes_direct_vnni(const Conv2d&) { return false; }
}  // namespace qsr

#endif
