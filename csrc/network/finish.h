// What follows the sums of a convolution (conv.h), for n channels of a pixel at a time: one source
// for every instruction set, in the compiler's own vectors. A file includes this after it has chosen
// its target, inside its own anonymous namespace, so that no two targets share a compiled copy.
//
// The formulas are those of qsr/integer/reference.py, bit for bit: a division where it divides, and
// no fused multiply-add (-ffp-contract=off). Multiplying by 1 / step instead would save 1 % of a
// layer and change codes at the thresholds.
//
// What networks do often is compiled, a template for each chain of operations (`with_finish`): their
// constants stay in registers. Any other chain is gone through pixel by pixel.

#include "vectors.h"

template <int n>
QSR_INLINE typename Vector<n>::Float load(const float* from) {
  return *(const typename Vector<n>::Float*)from;
}

// n numbers of a map, of which `left` are there.
template <int n>
QSR_INLINE typename Vector<n>::Float load_some(const float* from, int64_t left) {
  if (left >= n) return load<n>(from);
  typename Vector<n>::Float x = {};
  for (int64_t k = 0; k < left; ++k) x[k] = from[k];
  return x;
}
template <int n>
QSR_INLINE void store_some(float* to, int64_t left, typename Vector<n>::Float x) {
  if (left >= n) {
    *(typename Vector<n>::Float*)to = x;
    return;
  }
  for (int64_t k = 0; k < left; ++k) to[k] = x[k];
}

// A pixel: i to the right of (y, x). Of neighbours all but i is computed once.
struct Spot {
  int64_t y, x;
  int i;
  QSR_INLINE int64_t in(int64_t row, int64_t pixel) const { return y * row + x * pixel + i * pixel; }
};

// Channels [c, c + n) of a map; some: of which not all need be there.
template <int n, bool some>
struct Lanes {
  float* data;
  int64_t row, pixel, left;
  QSR_INLINE Lanes(const FloatMap& map, int64_t c)
      : data(map.data ? map.data + c : nullptr),
        row(map.row),
        pixel(map.pixel),
        left(map.channels - c) {}
  QSR_INLINE typename Vector<n>::Float load(Spot at) const {
    return load_some<n>(data + at.in(row, pixel), some ? left : n);
  }
  QSR_INLINE void store(Spot at, typename Vector<n>::Float value) const {
    store_some<n>(data + at.in(row, pixel), some ? left : n, value);
  }
};

// 2^t for t <= 0; 0 below -125. n is added to the exponent of 2^f.
template <int n>
QSR_INLINE typename Vector<n>::Float exp2(typename Vector<n>::Float t) {
  typedef typename Vector<n>::Unsigned Unsigned;
  const typename Vector<n>::Float shifted = t + kMagic, y = exp2_fraction(t - (shifted - kMagic));
  const Unsigned bits = (Unsigned)y + ((Unsigned)shifted << 23);
  return t < -125.0f ? typename Vector<n>::Float{} : (typename Vector<n>::Float)bits;
}

template <int n>
QSR_INLINE typename Vector<n>::Float sigmoid(typename Vector<n>::Float x) {
  typedef typename Vector<n>::Float Float;
  const Float e = exp2<n>((x < 0.0f ? x : -x) * 1.4426950408889634f);
  const Float y = (x < 0.0f ? e : Float{} + 1.0f) / (e + 1.0f);
  return x == x ? y : x;
}

template <int n>
QSR_INLINE typename Vector<n>::Float gelu(typename Vector<n>::Float x) {
  typedef typename Vector<n>::Float Float;
  const Float a = x < 0.0f ? -x : x;
  return (x > 0.0f ? x : Float{}) - a * exp2<n>(log2_phi(a));
}

template <int n, Op op, bool some>
struct Applied {
  typedef typename Vector<n>::Float Float;
  Float constant;  // slopes, or the factor
  const float* array;
  int64_t count;
  Lanes<n, some> map;

  QSR_INLINE Applied(const Operation& o, int64_t c)
      : constant(op == Op::kLeaky ? load<n>(o.array + c) : Float{} + o.factor),
        array(o.array),
        count(o.count),
        map(o.map, c) {}

  QSR_INLINE Float operator()(Float v, Spot at) const {
    if constexpr (op == Op::kRelu) return v < 0.0f ? Float{} : v;
    if constexpr (op == Op::kLeaky) return v > 0.0f ? v : v * constant;
    if constexpr (op == Op::kAdd) return constant * map.load(at) + v;
    if constexpr (op == Op::kMultiply) return map.load(at) * v;
    if constexpr (op == Op::kSigmoid) return sigmoid<n>(v);
    if constexpr (op == Op::kGelu) return gelu<n>(v);
    if constexpr (op == Op::kSilu) return v * sigmoid<n>(v);
    if constexpr (op == Op::kTanh) return sigmoid<n>(v * 2.0f) * 2.0f - 1.0f;
    for (int64_t i = 0; i < count; ++i) v = array[i] * v;
    return v;
  }
};

// A chain of operations, one after another.
template <int n, Op... ops>
struct Chain {
  QSR_INLINE Chain(const Operation*, int64_t) {}
  QSR_INLINE typename Vector<n>::Float operator()(typename Vector<n>::Float v, Spot) const {
    return v;
  }
};
template <int n, Op first, Op... others>
struct Chain<n, first, others...> {
  Applied<n, first, false> one;
  Chain<n, others...> rest;
  QSR_INLINE Chain(const Operation* o, int64_t c) : one(*o, c), rest(o + 1, c) {}
  QSR_INLINE typename Vector<n>::Float operator()(typename Vector<n>::Float v, Spot at) const {
    return rest(one(v, at), at);
  }
};

// Any chain of operations: looked up for each pixel.
template <int n>
struct AnyChain {
  const Finish& f;
  int64_t c;
  QSR_INLINE AnyChain(const Finish& f, int64_t c) : f(f), c(c) {}
  QSR_INLINE typename Vector<n>::Float operator()(typename Vector<n>::Float v, Spot at) const {
    for (int i = 0; i < f.operation_count; ++i) {
      const Operation& o = f.operations[i];
      switch (o.op) {
        case Op::kRelu: v = Applied<n, Op::kRelu, true>(o, c)(v, at); break;
        case Op::kLeaky: v = Applied<n, Op::kLeaky, true>(o, c)(v, at); break;
        case Op::kAdd: v = Applied<n, Op::kAdd, true>(o, c)(v, at); break;
        case Op::kMultiply: v = Applied<n, Op::kMultiply, true>(o, c)(v, at); break;
        case Op::kFactors: v = Applied<n, Op::kFactors, true>(o, c)(v, at); break;
        case Op::kSigmoid: v = Applied<n, Op::kSigmoid, true>(o, c)(v, at); break;
        case Op::kGelu: v = Applied<n, Op::kGelu, true>(o, c)(v, at); break;
        case Op::kSilu: v = Applied<n, Op::kSilu, true>(o, c)(v, at); break;
        case Op::kTanh: v = Applied<n, Op::kTanh, true>(o, c)(v, at); break;
      }
    }
    return v;
  }
};

// clamp(round(t)): halves to even, NaN gives 0.
template <int n>
QSR_INLINE typename Vector<n>::Byte code_bytes(typename Vector<n>::Float t,
                                               typename Vector<n>::Float low,
                                               typename Vector<n>::Float high) {
  t = t < low ? low : t;
  t = t > high ? high : t;
  return low_bytes<n>(nearest<n>(t) & (typename Vector<n>::Int)(t == t));
}

// Channels [c, c + n) of the codes of one reader.
template <int n>
struct Coder {
  typedef typename Vector<n>::Float Float;
  Float tau, step, low, high;
  uint8_t* codes;
  int64_t row, pitch;

  QSR_INLINE Coder(const CodeStore& store, int64_t c)
      : tau(store.map.data ? load<n>(store.tau + c) : Float{}),
        step(Float{} + store.step),
        low(Float{} + store.low),
        high(Float{} + store.high),
        codes(store.map.data ? store.map.at(0, 0) + c : nullptr),
        row(store.map.row()),
        pitch(store.map.pitch) {}

  QSR_INLINE void operator()(Float v, Spot at) const {
    *(typename Vector<n>::Byte*)(codes + at.in(row, pitch)) =
        code_bytes<n>((v + tau) / step, low, high);
  }
};

// The finish of channels [c, c + n): made once for many pixels, so that constants are loaded.
// code_count: how many readers; -1: any number, looked up for each pixel, and any number of channels.
template <int n, class Operations, int code_count>
struct Finisher {
  typedef typename Vector<n>::Float Float;
  Float scale, bias;
  Operations operations;
  Lanes<n, code_count == -1> out;
  Coder<n> coder;  // of the first reader
  const Finish& f;
  int64_t c;

  // shrink: what the kernel's sums must be multiplied by; a power of two, so nothing is rounded.
  QSR_INLINE Finisher(const Finish& f, int64_t c, float shrink, const Operations& operations)
      : scale(load<n>(f.scale + c) * shrink),
        bias(load<n>(f.bias + c)),
        operations(operations),
        out(f.out, c),
        coder(f.codes[0], c),
        f(f),
        c(c) {}

  QSR_INLINE void operator()(typename Vector<n>::Int sum, Spot at) const {
    finish(__builtin_convertvector(sum, Float) * scale + bias, at);
  }

  // The same from a value on that was no sum.
  QSR_INLINE void finish(Float v, Spot at) const {
    v = operations(v, at);
    if (out.data) out.store(at, v);
    if constexpr (code_count == 1) coder(v, at);
    if constexpr (code_count == -1)
      for (int i = 0; i < f.code_count; ++i) Coder<n>(f.codes[i], c)(v, at);
  }
};

// The sums themselves, of channels [c, c + n).
template <int n>
struct SumStore {
  int32_t* sums;
  int64_t row, pixel, left;
  int shift;
  QSR_INLINE void operator()(typename Vector<n>::Int sum, Spot at) const {
    sum >>= shift;
    int32_t* to = sums + at.in(row, pixel);
    if (left >= n)
      *(typename Vector<n>::Int*)to = sum;
    else
      for (int64_t k = 0; k < left; ++k) to[k] = sum[k];
  }
};

// Whether all maps have the channels [c, c + n).
template <int n>
bool is_whole(const Finish& f, int64_t c) {
  const auto whole = [c](const FloatMap& map) { return !map.data || map.channels >= c + n; };
  bool all = whole(f.out);
  for (int i = 0; i < f.operation_count; ++i) all = all && whole(f.operations[i].map);
  return all;
}

template <Op... ops>
bool is_chain(const Finish& f) {
  constexpr Op chain[] = {ops..., Op::kRelu};  // one more, as no array is empty
  if (f.operation_count != sizeof...(ops)) return false;
  for (int i = 0; i < f.operation_count; ++i)
    if (f.operations[i].op != chain[i]) return false;
  return true;
}

// use(finish): with what becomes of the sums of channels [c, c + n), which are 2^shift times too
// large, of a result of this width.
template <int n, class Use>
QSR_INLINE void with_finish(const Finish& f, int64_t width, int64_t c, int shift, const Use& use) {
  const float shrink = 1.0f / static_cast<float>(1 << shift);
  if (f.sums) {
    use(SumStore<n>{f.sums + c, width * f.sum_channels, f.sum_channels, f.sum_channels - c, shift});
    return;
  }
  const bool whole = is_whole<n>(f, c);
#define QSR_CHAIN(codes, ...)                                                        \
  if (f.code_count == codes && whole && is_chain<__VA_ARGS__>(f)) {                           \
    typedef Chain<n, ##__VA_ARGS__> Operations;                                      \
    use(Finisher<n, Operations, codes>(f, c, shrink, Operations(f.operations, c))); \
    return;                                                                        \
  }
  QSR_CHAIN(0)
  QSR_CHAIN(0, Op::kAdd)
  QSR_CHAIN(1)
  QSR_CHAIN(1, Op::kRelu)
  QSR_CHAIN(1, Op::kLeaky)
  QSR_CHAIN(1, Op::kLeaky, Op::kAdd)
  QSR_CHAIN(1, Op::kAdd)
  QSR_CHAIN(1, Op::kAdd, Op::kFactors)
#undef QSR_CHAIN
  use(Finisher<n, AnyChain<n>, -1>(f, c, shrink, AnyChain<n>(f, c)));
}
