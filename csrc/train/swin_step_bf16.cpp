// Swin layers for training on AVX-512 with BF16: 32 products of bfloat16 an instruction, summed in
// float32.
#include "cpu.h"
#include "train/swin_step.h"

#if QSR_X86
#include <new>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include <immintrin.h>

namespace qsr {
namespace {

#define QSR_AVX512
#include "vectors.h"

constexpr int kLanes = 16, kSums = 16;
typedef Vector<kLanes>::Float Lanes;

QSR_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
QSR_INLINE Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
QSR_INLINE float total(Lanes x) { return _mm512_reduce_add_ps(x); }
QSR_INLINE __mmask16 lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
QSR_INLINE Lanes first(Lanes x, int64_t count) { return _mm512_maskz_mov_ps(lanes(count), x); }

QSR_INLINE Lanes load_some(const void* from, bool half, int64_t at, int64_t count) {
  if (!half) return _mm512_maskz_loadu_ps(lanes(count), static_cast<const float*>(from) + at);
  const __m256i bits =
      _mm256_maskz_loadu_epi16(lanes(count), static_cast<const uint16_t*>(from) + at);
  return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}

QSR_INLINE void store_some(void* to, bool half, int64_t at, int64_t count, Lanes x) {
  if (half)
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + at, lanes(count),
                             (__m256i)_mm512_cvtneps_pbh(x));
  else
    _mm512_mask_storeu_ps(static_cast<float*>(to) + at, lanes(count), x);
}

struct Single {
  static constexpr int kPer = 1;
  QSR_INLINE static Lanes dot(float a, Lanes b, Lanes sum) {
    return fma(_mm512_set1_ps(a), b, sum);
  }
  QSR_INLINE static Lanes join(const Lanes* one) { return *one; }
  QSR_INLINE static void store_row(float* to, Lanes x) { *(Lanes*)to = x; }
};

struct Half {
  static constexpr int kPer = 2;
  QSR_INLINE static Lanes dot(float a, Lanes b, Lanes sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
  }
  QSR_INLINE static Lanes join(const Lanes* two) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(two[0]));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(two[1]));
    return (Lanes)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  QSR_INLINE static void store_row(float* to, Lanes x) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
  }
};

#include "train/swin_step_kernel.h"

}  // namespace

const SwinStepKernel kSwinStepBf16 = {"avx512bf16", has_bf16,      attention, attention_backward,
                                      norm,         norm_backward, gelu,      gelu_backward};

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
const SwinStepKernel kSwinStepBf16 = {"avx512bf16", has_bf16, nullptr, nullptr,
                                      nullptr,      nullptr,  nullptr, nullptr};
}  // namespace qsr

#endif
