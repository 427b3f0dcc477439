// Reading and writing a few numbers, float32 or bfloat16, on processors that have no masks; and
// products of single numbers alone. Included by a file that has chosen kLanes and Lanes.

typedef Vector<kLanes>::Unsigned Bits;
typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes), aligned(2)));

QSR_INLINE float total(Lanes x) {
  float sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += x[l];
  return sum;
}

QSR_INLINE Lanes first(Lanes x, int64_t count) {
  for (int64_t l = count; l < kLanes; ++l) x[l] = 0.0f;
  return x;
}

QSR_INLINE Lanes widened(Shorts x) { return (Lanes)(__builtin_convertvector(x, Bits) << 16); }

// The nearest bfloat16, halves to even; any NaN is the quiet one.
QSR_INLINE Shorts halved(Lanes x) {
  const Bits bits = (Bits)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(x == x ? rounded : Bits{} + 0x7fc0, Shorts);
}

QSR_INLINE Lanes load_some(const void* from, bool half, int64_t at, int64_t count) {
  const int64_t size = half ? 2 : 4;
  const char* bytes = static_cast<const char*>(from) + at * size;
  char copy[4 * kLanes] = {};
  if (count < kLanes) {
    __builtin_memcpy(copy, bytes, count * size);
    bytes = copy;
  }
  return half ? widened(*(const Shorts*)bytes) : *(const Lanes*)bytes;
}

QSR_INLINE void store_some(void* to, bool half, int64_t at, int64_t count, Lanes x) {
  const Shorts shorts = halved(x);
  if (half)
    __builtin_memcpy(static_cast<uint16_t*>(to) + at, &shorts, 2 * count);
  else
    __builtin_memcpy(static_cast<float*>(to) + at, &x, 4 * count);
}

struct Single {
  static constexpr int kPer = 1;
  QSR_INLINE static Lanes dot(float a, Lanes b, Lanes sum) { return fma(Lanes{} + a, b, sum); }
  QSR_INLINE static Lanes join(const Lanes* one) { return *one; }
  QSR_INLINE static void store_row(float* to, Lanes x) { *(Lanes*)to = x; }
};
using Half = Single;
