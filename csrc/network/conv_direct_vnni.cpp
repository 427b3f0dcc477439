// Direct rung on AVX-512 VNNI: VPDPBUSD is 64 products u8 x s8, summed by fours into 32 bits, exact
// for all bytes. Any convolution of up to 8 bits.
#include <type_traits>

#include "cpu.h"
#include "network/conv.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX512
#include "network/finish.h"

constexpr int kLanes = 16, kMostVectors = 4;
constexpr int kPixels[kMostVectors + 1] = {0, 16, 12, 8, 6};
typedef Vector<kLanes>::Int Int;

bool wide(const ConvShape&) { return false; }

template <bool is_signed>
QSR_INLINE Int four(const uint8_t* from) {
  int32_t bytes;
  __builtin_memcpy(&bytes, from, 4);
  const __m512i codes = _mm512_set1_epi32(bytes);
  return (Int)(is_signed ? _mm512_xor_si512(codes, _mm512_set1_epi8(-128)) : codes);
}

template <bool is_wide>
struct Weights {
  Int w;
  Weights() = default;
  QSR_INLINE explicit Weights(const int8_t* from) : w((Int)_mm512_loadu_si512(from)) {
    asm("" : "+v"(w));  // gcc 12 would load them once more for every pixel
  }
  QSR_INLINE Int dot(Int sum, Int codes) const {
    return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)w);
  }
};

#include "network/conv_direct.h"

bool takes(const ConvShape&) { return true; }
void run(const Conv& job, int64_t first, int64_t last, void*) {
  (job.shape.in_signed ? direct_rows<true, false> : direct_rows<false, false>)(job, first, last);
}

}  // namespace

const ConvKernel kConvDirectVnni = {"direct-vnni", has_vnni, kRows, takes, laid_out_bytes,
                                    lay_out,   scratch_bytes, run};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const ConvKernel kConvDirectVnni = {"direct-vnni", has_vnni, 1, nullptr, nullptr, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
