// What follows the sums of a layer (conv3x3.h), for n channels of a pixel at a time: one source for
// every instruction set, in the compiler's own vectors. A file includes this after it has chosen
// its target, inside its own anonymous namespace, so that no two targets share a compiled copy.
//
// The formulas are those of qsr/integer/reference.py, bit for bit: a division where it divides, and
// no fused multiply-add (-ffp-contract=off). Multiplying by 1 / step instead would save 1 % of a
// layer and change codes at the thresholds.

#include "vectors.h"

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

// The sums themselves, of channels [c, c + n) of one pixel.
template <int n>
struct SumStore {
  int32_t* sums;
  int64_t channels;  // that a pixel has from c on
  int shift;
  QSR_INLINE void operator()(typename Vector<n>::Int sum, int64_t at, int64_t) const {
    sum >>= shift;
    if (channels >= n)
      *(typename Vector<n>::Int*)(sums + at) = sum;
    else
      for (int64_t k = 0; k < channels; ++k) sums[at + k] = sum[k];
  }
};

// use(finish, channels): with what becomes of the sums of channels [c, c + n), which are 2^shift
// times too large, and how many channels a pixel has in the map that `at` counts in.
template <int n, class Use>
QSR_INLINE void with_finish(const Conv3x3& job, int64_t c, int shift, const Use& use) {
  const Finish& f = job.finish;
  const float shrink = 1.0f / static_cast<float>(1 << shift);
  if (f.sums)
    use(SumStore<n>{f.sums + c, f.sum_channels - c, shift}, f.sum_channels);
  else if (f.residual)
    use(Finisher<n, true>(f, c, shrink), job.out_channels);
  else
    use(Finisher<n, false>(f, c, shrink), job.out_channels);
}
