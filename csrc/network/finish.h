// What follows the sums of a layer (conv3x3.h), for n channels of a pixel at a time: one source for
// every instruction set, in the compiler's own vectors. A file includes this after it has chosen
// its target, inside its own anonymous namespace, so that no two targets share a compiled copy.
//
// The formulas are those of qsr/reference.py, bit for bit: a division where it divides, and no
// fused multiply-add (-ffp-contract=off). Multiplying by 1 / step instead would save 1 % of a layer
// and change codes at the thresholds.

// Vectors wider than the target's registers never cross a call: everything here is inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#define QSR_INLINE __attribute__((always_inline)) inline

template <int n>
struct Vector {
  typedef float Float __attribute__((vector_size(4 * n), aligned(4)));
  typedef int32_t Int __attribute__((vector_size(4 * n), aligned(4)));
  typedef uint32_t Unsigned __attribute__((vector_size(4 * n), aligned(4)));
  typedef uint8_t Byte __attribute__((vector_size(n), aligned(1)));
};

// The nearest integer, halves to even, of |x| < 2^22: adding 1.5 * 2^23 leaves no room for a
// fraction, so the sum is rounded to an integer, which is then its low bits.
template <int n>
QSR_INLINE typename Vector<n>::Int nearest(typename Vector<n>::Float x) {
  return (typename Vector<n>::Int)(x + 12582912.0f) - 0x4b400000;
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

// The finish of channels [c, c + n): made once for many pixels, so that all constants are loaded.
template <int n, bool has_residual>
struct Finisher {
  typedef typename Vector<n>::Float Float;
  typedef typename Vector<n>::Int Int;
  typedef typename Vector<n>::Byte Byte;
  Float scale, bias, least, shortcut, tau, step, low, high;
  const float *residual, *skips;
  int64_t skip_count;
  float* out;
  uint8_t* codes;

  static QSR_INLINE Float load(const float* from) { return *(const Float*)from; }

  // shrink: what the kernel's sums must be multiplied by; a power of two, so nothing is rounded.
  QSR_INLINE Finisher(const Finish& f, int64_t c, float shrink)
      : scale(load(f.scale + c) * shrink),
        bias(load(f.bias + c)),
        least(Float{} + (f.relu ? 0.0f : -__builtin_inff())),
        shortcut(Float{} + f.shortcut),
        tau(f.codes.data ? load(f.tau + c) : Float{}),
        step(Float{} + f.step),
        low(Float{} + f.low),
        high(Float{} + f.high),
        residual(has_residual ? f.residual + c : nullptr),
        skips(f.skips),
        skip_count(f.skip_count),
        out(f.out ? f.out + c : nullptr),
        codes(f.codes.data ? f.codes.data + c : nullptr) {}

  // at: where the pixel begins in a float map; code_at: in the map of codes.
  QSR_INLINE void operator()(Int sum, int64_t at, int64_t code_at) const {
    Float y = __builtin_convertvector(sum, Float) * scale + bias;
    if (has_residual) {
      y = shortcut * load(residual + at) + y;
      for (int64_t i = 0; i < skip_count; ++i) y = skips[i] * y;
      if (out) *(Float*)(out + at) = y;
    } else {
      y = y < least ? least : y;
    }
    if (codes) quantize(y, code_at);
  }

  QSR_INLINE void quantize(Float y, int64_t code_at) const {
    Float t = (y + tau) / step;
    t = t < low ? low : t;
    t = t > high ? high : t;
    *(Byte*)(codes + code_at) = low_bytes<n>(nearest<n>(t) & (Int)(t == t));
  }
};
