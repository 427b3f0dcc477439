// What kernels do alike with single float32 numbers and with vectors of them. A file includes this
// inside its own namespace, after it has chosen its target (see vectors.h).

// 1.5 * 2^23. Added to |x| < 2^22 it leaves no room for a fraction: the sum is x rounded to an
// integer, halves to even, and its low bits are that integer.
constexpr float kMagic = 12582912.0f;

// 2^f for |f| <= 1/2, to 1e-7; T: float or a vector. The operations of qsr/integer/reference.py.
template <class T>
QSR_INLINE constexpr T exp2_fraction(T f) {
  T y = f * 0.001327647219098223f + 0.009675541616274378f;
  y = y * f + 0.055507132753364594f;
  y = y * f + 0.2402211971865223f;
  y = y * f + 0.6931469670621001f;
  return y * f + 1.0000000716557271f;
}

// log2 of Phi(-a), the normal distribution, for a >= 0: the exponent in GELU. The same.
template <class T>
QSR_INLINE constexpr T log2_phi(T a) {
  T y = a * -1.9919060036525777e-06f + 2.927210329788054e-05f;
  y = y * a + -0.0001380887993409274f;
  y = y * a + -0.00025343496184706345f;
  y = y * a + 0.0072163873829500565f;
  y = y * a + -0.05260304785582369f;
  y = y * a + -0.4591722180581767f;
  y = y * a + -1.15110972878805f;
  return y * a + -0.9999999034337361f;
}
