// Vectors of n numbers in the compiler's own types: one source for every instruction set. A file
// includes this after it has chosen its target, inside its own anonymous namespace, so that no two
// targets share a compiled copy.
#include "floats.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // about calls; everything here is inlined

template <int n>
struct Vector {  // may lie at any address
  typedef float Float __attribute__((vector_size(4 * n), aligned(4)));
  typedef int32_t Int __attribute__((vector_size(4 * n), aligned(4)));
  typedef uint32_t Unsigned __attribute__((vector_size(4 * n), aligned(4)));
  typedef uint8_t Byte __attribute__((vector_size(n), aligned(1)));
  typedef uint8_t AlignedByte __attribute__((vector_size(n)));  // but this not
};

// The nearest integer, halves to even, of |x| < 2^22.
template <int n>
QSR_INLINE typename Vector<n>::Int nearest(typename Vector<n>::Float x) {
  return (typename Vector<n>::Int)(x + kMagic) - 0x4b400000;  // the bits of kMagic
}

// The low byte of each lane. A file for AVX2 or AVX-512 says so by QSR_AVX2 or QSR_AVX512 (before
// version 13 the pragma that chooses a target in g++ defines no macro). gcc 12 takes its own
// conversion apart into single numbers: written so, a layer on AVX2 takes 13 to 16 % less time.
template <int n>
QSR_INLINE typename Vector<n>::Byte low_bytes(typename Vector<n>::Int x) {
#ifdef QSR_AVX512
  if constexpr (n == 16) return (typename Vector<n>::Byte)_mm512_cvtepi32_epi8((__m512i)x);
#endif
#ifdef QSR_AVX2
  if constexpr (n == 8) {
    const __m256i fours = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi32(0x0c080400));
    return (typename Vector<n>::Byte)_mm_cvtsi128_si64(
        _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
  }
#endif
  return __builtin_convertvector(x, typename Vector<n>::Byte);
}
