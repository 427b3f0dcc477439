// The window of swin.h, one source for every instruction set. A file includes this inside its own
// anonymous namespace after it has chosen its target, included wide.h and written
//
//     kVectors      vectors of 16 outputs side by side in a linear layer
//     kSideBySide   queries side by side in a softmax, 1, 2 or 4
//
// Bytes are read four at a time beyond the end of a row or a head; what they meet there is a weight
// of 0, and every row has room for it (kSlack).

constexpr int kRows = 4;  // tokens side by side; a window has a multiple of 4
constexpr int64_t kSlack = 64;

// 2^n is multiplied by adding n to the exponent, where `shifted` has it in its low bits. No result
// is so small that this would not be the product.
QSR_INLINE Float exp2(Float t) {
  const Float shifted = t + kMagic, y = exp2_fraction(t - (shifted - kMagic));
  return zero_below(-125.0f, t, as_float(as_int(y) + (as_int(shifted) << 23)));
}

QSR_INLINE Float gelu(Float x) {
  const Float a = as_float(as_int(x) & 0x7fffffff);
  return larger(x, all(0.0f)) - a * exp2(log2_phi(a));
}

// The code nearest to z, as a byte: the low one of z + kMagic.
QSR_INLINE Byte bytes(Float z, Float low, Float high, Int offset) {
  z = smaller(high, larger(low, z));
  return low_bytes(zero_where_nan(z, as_int(z + kMagic)) + offset);
}
QSR_INLINE Byte bytes(Float z, const ByteCodes& c) {
  return bytes(z, all(c.low), all(c.high), all(c.offset));
}
// Memory of one thread, aligned to 64 bytes.
struct Scratch {
  uint8_t* base;
  int64_t used = 0;
  explicit Scratch(int64_t size)
      : base(static_cast<uint8_t*>(::operator new(size, std::align_val_t{64}))) {
    std::memset(base, 0, size);
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(base, std::align_val_t{64}); }
  template <class T>
  T* take(int64_t count) {
    T* at = reinterpret_cast<T*>(base + used);
    used += (count * sizeof(T) + 63) & ~int64_t{63};
    return at;
  }
};

constexpr int64_t up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Attention
// -----------------------------------------------------------------------------------------

struct AttentionScratch {
  int8_t *keys, *values;  // of one head: [width / 4, padded, 4], [width / 16, padded / 4, 16, 4]
  int32_t *key_start, *value_start;
  float* float_keys;  // [width, padded]
  float* scores;      // [kRows, padded]
  uint8_t* p;         // [kRows, padded]

  static int64_t size(const WindowAttention& a) {
    return 16 * 64 + (up(a.width, 16) * (a.padded * 6 + 4)) + a.padded * (4 + kRows * 5);
  }
  AttentionScratch(const WindowAttention& a, Scratch& s)
      : keys(s.take<int8_t>(up(a.width, 4) * a.padded)),
        values(s.take<int8_t>(up(a.width, 16) * a.padded)),
        key_start(s.take<int32_t>(a.padded)),
        value_start(s.take<int32_t>(up(a.width, 16))),
        float_keys(s.take<float>(a.width * a.padded)),
        scores(s.take<float>(kRows * a.padded)),
        p(s.take<uint8_t>(kRows * a.padded)) {}
};

// Scores [rows, count] without bias, in vectors -> numerators of the softmax, in place, and their
// sums. Rows are worked off side by side, because each is a chain of operations that wait for each
// other.
template <int rows>
QSR_INLINE void softmax(Float* scores, int64_t count, const float* bias, const float* mask,
                        float* sums) {
  Float most[rows], sum[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    most[r] = all(-__builtin_inff());
#pragma GCC unroll 4
    for (int64_t v = 0; v < count; ++v) {
      Float& score = scores[r * count + v];
      score = score + load(bias + (r * count + v) * kLanes);
      if (mask) score = score + load(mask + (r * count + v) * kLanes);
      most[r] = larger(most[r], score);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) most[r] = all(largest(most[r]));
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    sum[r] = all(0.0f);
#pragma GCC unroll 4
    for (int64_t v = 0; v < count; ++v) {
      Float& score = scores[r * count + v];
      score = exp2((score - most[r]) * 1.4426950408889634f);
      sum[r] = sum[r] + score;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) sums[r] = total(sum[r]);
}

// Codes of the probabilities of `rows` queries, into p. scores: room for [rows, count] vectors.
template <int rows>
QSR_INLINE void probabilities(const WindowAttention& a, const AttentionScratch& s, const uint8_t* q,
                              int64_t row_bytes, const float* bias, const float* mask,
                              Float* scores, int64_t count, uint8_t* p) {
  float sums[rows];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r, q += row_bytes) {
    int32_t extra = 0;  // of keys that are kept as code + offset
    if (a.k.offset)
      for (int64_t c = 0; c < a.width; ++c) extra -= a.k.offset * (q[c] - a.q.offset);
#pragma GCC unroll 4
    for (int64_t v = 0; v < count; ++v) {
      Int sum = load(s.key_start + v * kLanes) + extra;
      for (int64_t c = 0; c < a.width; c += 4)
        sum = dot(sum, q + c, s.keys + (c / 4 * count + v) * 4 * kLanes);
      scores[r * count + v] = to_float(sum) * a.qk_scale;
    }
  }
  softmax<rows>(scores, count, bias, mask, sums);
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    const float inverse = 1.0f / (sums[r] * a.p.step);
#pragma GCC unroll 4
    for (int64_t v = 0; v < count; ++v)
      store(p + (r * count + v) * kLanes, bytes(scores[r * count + v] * inverse, a.p));
  }
}

template <int rows>
QSR_INLINE void mix(const WindowAttention& a, const AttentionScratch& s, float* out,
                    int64_t out_row) {
  for (int64_t d = 0; d < a.width; d += kLanes) {
    Int sum[rows];
    for (int r = 0; r < rows; ++r) {
      sum[r] = load(s.value_start + d);
      if (a.v.offset)
        for (int64_t j = 0; j < a.pixels; ++j)
          sum[r] = sum[r] + -a.v.offset * (s.p[r * a.padded + j] - a.p.offset);
    }
    for (int64_t j = 0; j < a.padded; j += 4)
      for (int r = 0; r < rows; ++r)
        sum[r] = dot(sum[r], s.p + r * a.padded + j, s.values + d * a.padded + j * 16);
    for (int r = 0; r < rows; ++r) store(out + r * out_row + d, to_float(sum[r]) * a.pv_scale);
  }
}

template <int rows>
QSR_INLINE void attend_rows(const WindowAttention& a, const AttentionScratch& s, const uint8_t* q,
                            int64_t row_bytes, const float* bias, const float* mask, float* out,
                            int64_t out_row) {
  constexpr int kSide = rows < kSideBySide ? rows : kSideBySide;
  for (int r = 0; r < rows; r += kSide) {
    const int64_t at = r * a.padded;
    if (a.padded == 4 * kLanes) {  // a window of 8 x 8 pixels: scores in registers
      Float scores[kSide * 4];
      if (mask)
        probabilities<kSide>(a, s, q + r * row_bytes, row_bytes, bias + at, mask + at, scores, 4,
                             s.p + at);
      else
        probabilities<kSide>(a, s, q + r * row_bytes, row_bytes, bias + at, nullptr, scores, 4,
                             s.p + at);
    } else {
      probabilities<kSide>(a, s, q + r * row_bytes, row_bytes, bias + at,
                           mask ? mask + at : nullptr, (Float*)s.scores, a.padded / kLanes,
                           s.p + at);
    }
  }
  mix<rows>(a, s, out, out_row);
}

constexpr uint8_t kOnes[4] = {1, 1, 1, 1};

// Keys of one head, four channels together and the pixels side by side.
QSR_INLINE void lay_out_keys(const WindowAttention& a, const AttentionScratch& s, const int8_t* k,
                             int64_t row_bytes) {
  for (int64_t c = 0; c < a.width; c += 4) {
    uint8_t used[4];
    for (int i = 0; i < 4; ++i) used[i] = c + i < a.width ? 255 : 0;
    uint32_t mask, four;
    std::memcpy(&mask, used, 4);
    for (int64_t j = 0; j < a.padded; ++j) {
      std::memcpy(&four, k + j * row_bytes + c, 4);
      four &= mask;
      std::memcpy(s.keys + (c / 4 * a.padded + j) * 4, &four, 4);
    }
  }
  for (int64_t j = 0; j < a.padded; j += kLanes) {
    Int sum = all(0);
    for (int64_t c = 0; c < a.width; c += 4)
      sum = dot(sum, kOnes, s.keys + (c / 4 * a.padded + j) * 4);
    store(s.key_start + j, sum * -a.q.offset);
  }
}

// Values of one head, four pixels together and the channels side by side. Beyond the last channel
// stands what follows in the row; it meets nothing but results that are not read.
QSR_INLINE void lay_out_values(const WindowAttention& a, const AttentionScratch& s, const int8_t* v,
                               int64_t row_bytes) {
  typedef int8_t Bytes __attribute__((vector_size(16), aligned(1)));
  typedef int16_t Pairs __attribute__((vector_size(16), aligned(1)));
  for (int64_t d = 0; d < a.width; d += kLanes) {
    Int sum = all(0);
    for (int64_t j = 0; j < a.padded; j += 4) {
      const int8_t* from = v + j * row_bytes + d;
      const Bytes r0 = *(const Bytes*)from, r1 = *(const Bytes*)(from + row_bytes);
      const Bytes r2 = *(const Bytes*)(from + 2 * row_bytes),
                  r3 = *(const Bytes*)(from + 3 * row_bytes);
#define QSR_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define QSR_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
      const Pairs p0 = (Pairs)__builtin_shufflevector(r0, r1, QSR_LOW);
      const Pairs p1 = (Pairs)__builtin_shufflevector(r0, r1, QSR_HIGH);
      const Pairs p2 = (Pairs)__builtin_shufflevector(r2, r3, QSR_LOW);
      const Pairs p3 = (Pairs)__builtin_shufflevector(r2, r3, QSR_HIGH);
#undef QSR_LOW
#undef QSR_HIGH
      int8_t* to = s.values + d * a.padded + j * 16;
      *(Pairs*)to = __builtin_shufflevector(p0, p2, 0, 8, 1, 9, 2, 10, 3, 11);
      *(Pairs*)(to + 16) = __builtin_shufflevector(p0, p2, 4, 12, 5, 13, 6, 14, 7, 15);
      *(Pairs*)(to + 32) = __builtin_shufflevector(p1, p3, 0, 8, 1, 9, 2, 10, 3, 11);
      *(Pairs*)(to + 48) = __builtin_shufflevector(p1, p3, 4, 12, 5, 13, 6, 14, 7, 15);
      sum = dot(sum, kOnes, to);
    }
    store(s.value_start + d, sum * -a.p.offset);
  }
}

// rows of codes: q, k, v [heads * width] each, of all pixels -> out [pixels, heads * width].
// There are `padded` rows; those beyond `pixels` are zeros.
__attribute__((noinline)) void attend(WindowAttention a, AttentionScratch s, const uint8_t* codes,
                                      int64_t row_bytes, const float* mask, float* out,
                                      int64_t out_row) {
  const int64_t features = a.heads * a.width;
  for (int64_t h = 0; h < a.heads; ++h) {
    const uint8_t* q = codes + h * a.width;
    const int8_t* k = reinterpret_cast<const int8_t*>(q + features);
    const int8_t* v = k + features;
    lay_out_keys(a, s, k, row_bytes);
    lay_out_values(a, s, v, row_bytes);
    const float* bias = a.bias + h * a.pixels * a.padded;
    int64_t i = 0;
    for (; i + kRows <= a.pixels; i += kRows)
      attend_rows<kRows>(a, s, q + i * row_bytes, row_bytes, bias + i * a.padded,
                         mask ? mask + i * a.padded : nullptr, out + i * out_row + h * a.width,
                         out_row);
    for (; i < a.pixels; ++i)
      attend_rows<1>(a, s, q + i * row_bytes, row_bytes, bias + i * a.padded,
                     mask ? mask + i * a.padded : nullptr, out + i * out_row + h * a.width,
                     out_row);
  }
}

// The same in float32: rows of q * query_scale, k, v.
template <int rows>
QSR_INLINE void attend_float_rows(const WindowAttention& a, const AttentionScratch& s,
                                  const float* q, const float* v, int64_t row, const float* bias,
                                  const float* mask, float* out, int64_t out_row) {
  for (int64_t j = 0; j < a.padded; j += kLanes) {
    Float sum[rows] = {};
    for (int64_t c = 0; c < a.width; ++c) {
      const Float key = load(s.float_keys + c * a.padded + j);
      for (int r = 0; r < rows; ++r) sum[r] = sum[r] + key * q[r * row + c];
    }
    for (int r = 0; r < rows; ++r) store(s.scores + r * a.padded + j, sum[r]);
  }
  float sums[rows], inverse[rows];
  softmax<rows>((Float*)s.scores, a.padded / kLanes, bias, mask, sums);
  for (int r = 0; r < rows; ++r) inverse[r] = 1.0f / sums[r];
  for (int64_t d = 0; d < a.width; d += kLanes) {
    Float sum[rows] = {};
    for (int64_t j = 0; j < a.pixels; ++j) {
      const Float value = load(v + j * row + d);
      for (int r = 0; r < rows; ++r) sum[r] = sum[r] + value * s.scores[r * a.padded + j];
    }
    for (int r = 0; r < rows; ++r) store(out + r * out_row + d, sum[r] * inverse[r]);
  }
}

__attribute__((noinline)) void attend_float(WindowAttention a, AttentionScratch s, const float* qkv,
                                            int64_t row, const float* mask, float* out,
                                            int64_t out_row) {
  const int64_t features = a.heads * a.width;
  for (int64_t h = 0; h < a.heads; ++h) {
    const float *q = qkv + h * a.width, *k = q + features, *v = k + features;
    for (int64_t j = 0; j < a.pixels; ++j)
      for (int64_t c = 0; c < a.width; ++c) s.float_keys[c * a.padded + j] = k[j * row + c];
    const float* bias = a.bias + h * a.pixels * a.padded;
    for (int64_t i = 0; i < a.pixels; i += kRows)
      attend_float_rows<kRows>(a, s, q + i * row, v, row, bias + i * a.padded,
                               mask ? mask + i * a.padded : nullptr,
                               out + i * out_row + h * a.width, out_row);
  }
}

// A row of float32 q, k, v -> bytes. Both have kSlack.
void quantize_qkv(const WindowAttention& a, const float* x, uint8_t* to) {
  const int64_t features = a.heads * a.width;
  const ByteCodes* const codes[3] = {&a.q, &a.k, &a.v};
  for (int part = 0; part < 3; ++part, x += features, to += features) {
    const ByteCodes c = *codes[part];
    const float factor = part == 0 ? a.query_scale : 1.0f;
    for (int64_t i = 0; i < features;
         i += kLanes)  // what lies beyond is written again, or not read
      store(to + i, bytes(load(x + i) * factor / c.step, c));
  }
}

void attention(const AttentionRows& job, int64_t first, int64_t last) {
  const WindowAttention& a = job.attention;
  const int64_t features = a.heads * a.width, row = up(3 * features, 64) + kSlack;
  const int64_t out_row = up(features, 64) + kSlack;
  Scratch scratch(AttentionScratch::size(a) + a.padded * (row + 4 * out_row + 4 * a.padded) +
                  4 * row + 8 * 64);
  const AttentionScratch s(a, scratch);
  uint8_t* codes = scratch.take<uint8_t>(a.padded * row);
  float* mixed = scratch.take<float>(a.pixels * out_row);
  float* mask = scratch.take<float>(a.pixels * a.padded);
  float* given = scratch.take<float>(row);
  for (int64_t w = first; w < last; ++w) {
    for (int64_t i = 0; i < a.pixels; ++i) {
      std::memcpy(given, job.qkv + (w * a.pixels + i) * 3 * features, 3 * features * sizeof(float));
      quantize_qkv(a, given, codes + i * row);
    }
    if (job.mask)
      for (int64_t i = 0; i < a.pixels; ++i)
        std::memcpy(mask + i * a.padded, job.mask + (w % job.masks * a.pixels + i) * a.pixels,
                    a.pixels * sizeof(float));
    attend(a, s, codes, row, job.mask ? mask : nullptr, mixed, out_row);
    for (int64_t i = 0; i < a.pixels; ++i)
      std::memcpy(job.out + (w * a.pixels + i) * features, mixed + i * out_row,
                  features * sizeof(float));
  }
}

// Linear layers and norms
// ---------------------------------------------------------------------------

// rows of [channels], of which `features` are used -> [rows, channels]. Rows side by side, as
// above.
template <int rows>
QSR_INLINE void norm_rows(const float* const* x, int64_t channels, int64_t features,
                          const Norm& norm, float* out) {
  Float sum[rows] = {}, squares[rows] = {};
  float mean[rows], inverse[rows];
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int r = 0; r < rows; ++r) sum[r] = sum[r] + load(x[r] + c);
  for (int r = 0; r < rows; ++r) mean[r] = total(sum[r]) / static_cast<float>(features);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Int used = lanes_below(static_cast<int32_t>(features - c));
    for (int r = 0; r < rows; ++r) {
      const Float d = as_float(as_int(load(x[r] + c) - mean[r]) & used);
      squares[r] = squares[r] + d * d;
    }
  }
  for (int r = 0; r < rows; ++r) {
    const float variance = total(squares[r]) / static_cast<float>(features);
    inverse[r] = 1.0f / std::sqrt(variance + norm.eps);
  }
  // Beyond the last channel weight and bias are 0.
  for (int64_t c = 0; c < channels; c += kLanes)
    for (int r = 0; r < rows; ++r)
      store(out + r * channels + c,
            (load(x[r] + c) - mean[r]) * inverse[r] * load(norm.weight + c) + load(norm.bias + c));
}

void norm(const NormRows& job, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const float* x = job.x + i * job.channels;
    norm_rows<1>(&x, job.channels, job.features, job.norm, job.out + i * job.channels);
  }
}

QSR_INLINE void quantize_row(const float* x, ByteLinear to, uint8_t* codes) {
  for (int64_t c = 0; c < to.in; c += kLanes)
    store(codes + c, bytes((load(x + c) + load(to.tau + c)) / to.codes.step, to.codes));
}

// Norm and quantisation of the pixels of a window. normed: room for [kRows, in].
__attribute__((noinline)) void codes_of_normed(const float* const* x, int64_t pixels,
                                               int64_t features, Norm norm, ByteLinear to,
                                               float* normed, uint8_t* codes) {
  for (int64_t i = 0; i < pixels; i += kRows) {
    norm_rows<kRows>(x + i, to.in, features, norm, normed);
    for (int r = 0; r < kRows; ++r) quantize_row(normed + r * to.in, to, codes + (i + r) * to.in);
  }
}

// use(row, output, y): y = sum * scale + bias of 16 outputs. Arguments are copies and no inlining
// here, so that gcc knows that a store of bytes changes none of them, and keeps them in registers.
template <class Use>
__attribute__((noinline)) void linear(ByteLinear layer, const uint8_t* codes, int64_t rows,
                                      Use use) {
  const int64_t depth = layer.in;
  for (int64_t o = 0; o < layer.out; o += kVectors * kLanes) {
    const int8_t* weights = layer.weights + o * depth;
    for (int64_t i = 0; i < rows; i += kRows) {
      const uint8_t* from = codes + i * depth;
      Int sum[kRows][kVectors];
      for (int v = 0; v < kVectors; ++v)
        for (int r = 0; r < kRows; ++r) sum[r][v] = load(layer.start + o + v * kLanes);
      for (int64_t c = 0; c < depth; c += 4)
        for (int r = 0; r < kRows; ++r)
          for (int v = 0; v < kVectors; ++v)
            sum[r][v] = dot(sum[r][v], from + r * depth + c, weights + (v * depth + c) * kLanes);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = o + v * kLanes;
        const Float scale = load(layer.scale + at), bias = load(layer.bias + at);
        for (int r = 0; r < kRows; ++r) use(i + r, at, to_float(sum[r][v]) * scale + bias);
      }
    }
  }
}

// A layer, window by window
// -------------------------------------------------------------------------

// -100 between the pixels of a window that the cyclic shift brought together from opposite edges.
void fill_mask(const SwinLayer& job, bool last_row, bool last_column, float* mask) {
  const int64_t half = job.window - job.window / 2;
  const auto region = [&](int64_t i) {
    return (last_row && i / job.window >= half) * 2 + (last_column && i % job.window >= half);
  };
  for (int64_t i = 0; i < job.attention.pixels; ++i)
    for (int64_t j = 0; j < job.attention.pixels; ++j)
      mask[i * job.attention.padded + j] = region(i) == region(j) ? 0.0f : -100.0f;
}

void layer(const SwinLayer& job, int64_t first, int64_t last) {
  const WindowAttention& a = job.attention;
  const int64_t channels = job.channels, pixels = a.pixels, columns = job.width / job.window;
  const int64_t row = job.qkv.out + kSlack, out_row = channels + kSlack;
  Scratch scratch(AttentionScratch::size(a) +
                  a.padded * (16 + channels + 5 * row + 4 * out_row + 4 * a.padded + job.fc1.out) +
                  4 * kRows * channels + 17 * 64);
  const AttentionScratch s(a, scratch);
  const float** from = scratch.take<const float*>(pixels);
  float** at = scratch.take<float*>(pixels);
  float* normed = scratch.take<float>(kRows * channels);
  uint8_t* codes = scratch.take<uint8_t>(pixels * channels);
  uint8_t* qkv = scratch.take<uint8_t>(a.padded * row);
  float* float_qkv = scratch.take<float>(pixels * row);
  float* mixed = scratch.take<float>(pixels * out_row);
  float* mask = scratch.take<float>(pixels * a.padded);
  uint8_t* hidden = scratch.take<uint8_t>(pixels * job.fc1.out);
  const int64_t features = a.heads * a.width;
  for (int64_t w = first; w < last; ++w) {
    const int64_t wy = w / columns, wx = w % columns;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t y = (wy * job.window + i / job.window + job.shift) % job.height;
      const int64_t x = (wx * job.window + i % job.window + job.shift) % job.width;
      from[i] = job.from + (y * job.width + x) * channels;
      at[i] = job.stream + (y * job.width + x) * channels;
    }
    codes_of_normed(from, pixels, job.features, job.norm1, job.qkv, normed, codes);
    linear(job.qkv, codes, pixels,
           [=](int64_t i, int64_t o, Float y) { store(float_qkv + i * row + o, y); });
    const bool last_row = wy == job.height / job.window - 1, last_column = wx == columns - 1;
    const bool masked = job.shift && (last_row || last_column);
    if (masked) fill_mask(job, last_row, last_column, mask);
    if (a.quantised) {
      for (int64_t i = 0; i < pixels; ++i) quantize_qkv(a, float_qkv + i * row, qkv + i * row);
      attend(a, s, qkv, row, masked ? mask : nullptr, mixed, out_row);
    } else {
      for (int64_t i = 0; i < pixels; ++i)
        for (int64_t c = 0; c < features; ++c) float_qkv[i * row + c] *= a.query_scale;
      attend_float(a, s, float_qkv, row, masked ? mask : nullptr, mixed, out_row);
    }
    for (int64_t i = 0; i < pixels; ++i)
      quantize_row(mixed + i * out_row, job.proj, codes + i * channels);
    linear(job.proj, codes, pixels, [from, at](int64_t i, int64_t o, Float y) {
      store(at[i] + o, load(from[i] + o) + y);
    });
    codes_of_normed(at, pixels, job.features, job.norm2, job.fc1, normed, codes);
    linear(job.fc1, codes, pixels, [hidden, fc2 = job.fc2](int64_t i, int64_t o, Float y) {
      store(hidden + i * fc2.in + o,
            bytes((gelu(y) + load(fc2.tau + o)) / fc2.codes.step, fc2.codes));
    });
    linear(job.fc2, hidden, pixels,
           [at](int64_t i, int64_t o, Float y) { store(at[i] + o, load(at[i] + o) + y); });
  }
}
