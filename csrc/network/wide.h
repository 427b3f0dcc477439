// Sixteen lanes side by side, as vectors of the width that the target has: one of 16, two of 8 or
// four of 4. (gcc takes vectors wider than the machine's apart into single numbers; the Swin layers
// were 20 times slower so.) A file includes this inside its own anonymous namespace, after
// finish.h, when it has chosen its target and written
//
//     QSR_PART                          the lanes of a part: 16, 8 or 4
//     FloatPart larger(FloatPart a, FloatPart b)   a > b ? a : b, so b where one is NaN
//     FloatPart smaller(FloatPart a, FloatPart b)  a < b ? a : b
//     IntPart dot(IntPart sum, const uint8_t* four, const int8_t* weights)
//                                       sum[l] + four[0..3] . weights[4 l .. 4 l + 3], exact
//
// Each lane is computed by itself and `fold` joins lanes in one fixed order, so that no result
// depends on the width.

typedef Vector<QSR_PART>::Unsigned UnsignedPart;
constexpr int kLanes = kRowLanes, kParts = kLanes / QSR_PART;

struct Int {
  IntPart part[kParts];
};
struct Float {
  FloatPart part[kParts];
};
struct Byte {
  BytePart part[kParts];
};

// clang-format off
#define QSR_PARTS(Result, expression)                                                      \
  {                                                                                        \
    Result result;                                                                         \
    _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i) result.part[i] = expression;  \
    return result;                                                                         \
  }
QSR_INLINE Float all(float x) QSR_PARTS(Float, FloatPart{} + x)
QSR_INLINE Int all(int32_t x) QSR_PARTS(Int, IntPart{} + x)
QSR_INLINE Float operator+(Float a, Float b) QSR_PARTS(Float, a.part[i] + b.part[i])
QSR_INLINE Float operator-(Float a, Float b) QSR_PARTS(Float, a.part[i] - b.part[i])
QSR_INLINE Float operator*(Float a, Float b) QSR_PARTS(Float, a.part[i] * b.part[i])
QSR_INLINE Float operator/(Float a, Float b) QSR_PARTS(Float, a.part[i] / b.part[i])
QSR_INLINE Float operator+(Float a, float b) QSR_PARTS(Float, a.part[i] + b)
QSR_INLINE Float operator-(Float a, float b) QSR_PARTS(Float, a.part[i] - b)
QSR_INLINE Float operator*(Float a, float b) QSR_PARTS(Float, a.part[i] * b)
QSR_INLINE Float operator/(Float a, float b) QSR_PARTS(Float, a.part[i] / b)
// Sums of integers are modulo 2^32: 2^t of a t far below -125 is made of one that wraps and is
// dropped.
QSR_INLINE Int operator+(Int a, Int b)
    QSR_PARTS(Int, (IntPart)((UnsignedPart)a.part[i] + (UnsignedPart)b.part[i]))
QSR_INLINE Int operator+(Int a, int32_t b) { return a + all(b); }
QSR_INLINE Int operator*(Int a, int32_t b) QSR_PARTS(Int, a.part[i] * b)
QSR_INLINE Int operator&(Int a, Int b) QSR_PARTS(Int, a.part[i] & b.part[i])
QSR_INLINE Int operator&(Int a, int32_t b) QSR_PARTS(Int, a.part[i] & b)
QSR_INLINE Int operator<<(Int a, int n) QSR_PARTS(Int, a.part[i] << n)
QSR_INLINE Float zero_below(float limit, Float t, Float y)
    QSR_PARTS(Float, t.part[i] < limit ? FloatPart{} : y.part[i])
QSR_INLINE Int zero_where_nan(Float z, Int x)
    QSR_PARTS(Int, z.part[i] == z.part[i] ? x.part[i] : IntPart{})
QSR_INLINE Float larger(Float a, Float b) QSR_PARTS(Float, larger(a.part[i], b.part[i]))
QSR_INLINE Float smaller(Float a, Float b) QSR_PARTS(Float, smaller(a.part[i], b.part[i]))
QSR_INLINE Int dot(Int sum, const uint8_t* four, const int8_t* weights)
    QSR_PARTS(Int, dot(sum.part[i], four, weights + 4 * QSR_PART * i))

// The same bits read otherwise, and the same numbers written otherwise.
QSR_INLINE Int as_int(Float x) QSR_PARTS(Int, (IntPart)x.part[i])
QSR_INLINE Float as_float(Int x) QSR_PARTS(Float, (FloatPart)x.part[i])
QSR_INLINE Float to_float(Int x) QSR_PARTS(Float, __builtin_convertvector(x.part[i], FloatPart))
QSR_INLINE Byte low_bytes(Int x) QSR_PARTS(Byte, low_bytes<QSR_PART>(x.part[i]))
// clang-format on
#undef QSR_PARTS

QSR_INLINE Float load(const float* from) { return *(const Float*)from; }
QSR_INLINE Int load(const int32_t* from) { return *(const Int*)from; }
QSR_INLINE void store(float* to, Float x) { *(Float*)to = x; }
QSR_INLINE void store(int32_t* to, Int x) { *(Int*)to = x; }
QSR_INLINE void store(uint8_t* to, Byte x) { *(Byte*)to = x; }

// All bits of lane l where l < n.
alignas(64) constexpr int32_t kLaneIndex[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                    8, 9, 10, 11, 12, 13, 14, 15};
QSR_INLINE Int lanes_below(int32_t n) {
  Int lanes = load(kLaneIndex);
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) lanes.part[i] = (IntPart)(lanes.part[i] < n);
  return lanes;
}

// All lanes joined: lane l with lane l + 8, then with l + 4, l + 2, l + 1.
template <class Join>
QSR_INLINE float fold(Float x, Join join) {
#pragma GCC unroll 4
  for (int n = kParts / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) x.part[i] = join(x.part[i], x.part[i + n]);
  FloatPart y = x.part[0];
#define QSR_TURN(...) y = join(y, __builtin_shufflevector(y, y, __VA_ARGS__))
#if QSR_PART == 16
  QSR_TURN(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  QSR_TURN(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  QSR_TURN(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  QSR_TURN(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif QSR_PART == 8
  QSR_TURN(4, 5, 6, 7, 0, 1, 2, 3);
  QSR_TURN(2, 3, 0, 1, 6, 7, 4, 5);
  QSR_TURN(1, 0, 3, 2, 5, 4, 7, 6);
#else
  QSR_TURN(2, 3, 0, 1);
  QSR_TURN(1, 0, 3, 2);
#endif
#undef QSR_TURN
  return y[0];
}
QSR_INLINE float total(Float x) {
  return fold(x, [](FloatPart a, FloatPart b) __attribute__((always_inline)) { return a + b; });
}
QSR_INLINE float largest(Float x) {
  return fold(x,
              [](FloatPart a, FloatPart b) __attribute__((always_inline)) { return larger(a, b); });
}
