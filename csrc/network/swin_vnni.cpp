// Swin layers on AVX-512 VNNI: one instruction is 64 products u8 x s8, summed by fours into s32,
// exact for all bytes.
#include "cpu.h"
#include "network/swin.h"

#if QSR_X86
#include <cmath>
#include <cstring>
#include <new>

#include "network/conv.h"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of gcc 12, about its own header

namespace qsr {
namespace {

#define QSR_AVX512
#include "network/finish.h"

#define QSR_PART 16
typedef Vector<QSR_PART>::Int IntPart;
typedef Vector<QSR_PART>::Float FloatPart;
typedef Vector<QSR_PART>::Byte BytePart;

QSR_INLINE FloatPart larger(FloatPart a, FloatPart b) {
  return (FloatPart)_mm512_max_ps((__m512)a, (__m512)b);
}
QSR_INLINE FloatPart smaller(FloatPart a, FloatPart b) {
  return (FloatPart)_mm512_min_ps((__m512)a, (__m512)b);
}

QSR_INLINE IntPart dot(IntPart sum, const uint8_t* four, const int8_t* weights) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  return (IntPart)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(bytes),
                                      _mm512_loadu_si512(weights));
}

#include "network/wide.h"

constexpr int kVectors = 4, kSideBySide = 4;
#include "network/swin_kernel.h"

}  // namespace

const SwinKernel kSwinVnni = {"vnni", has_vnni, 16, layer, attention, norm};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const SwinKernel kSwinVnni = {"vnni", has_vnni, 0, nullptr, nullptr, nullptr};
}  // namespace qsr

#endif
