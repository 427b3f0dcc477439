// The collapsed tail by Winograd's F(4x4, 5x5): a tile of 4x4 outputs from 8x8 inputs with 64
// products where the definition has 400. One source for every instruction set: a file chooses its
// target, says how wide a vector is (kLanes, Lanes), how many tiles a register tile has (kTiles)
// and what a fused multiply-add is, then includes this inside its own anonymous namespace.
//
// The points are 0, 1, -1, 2, -2, 1/2, -1/2 and infinity, as in the F(6x6, 3x3) of float libraries.
// Float32 keeps the result within some 1e-6 of the sum of products (tests/test_tail.py).
//
// The weights of all 64 positions, 786 KB at x4, are read once for each kTiles tiles; two or four
// times as many tiles a pass measured 7 and 17 % slower, because the transformed patches then leave
// the cache. Results do not depend on how strips of rows are split over threads; a strip of a
// picture that starts at a multiple of 4 rows gives the bits of the whole picture, because its
// tiles are the same tiles.
//
// The outermost pixels have weights of their own and are computed by the definition.

constexpr int kReach = 2, kTile = 4, kPatch = 8, kPositions = kPatch * kPatch;
constexpr int kMaxOutputs = 48;

QSR_INLINE Lanes load(const float* from) { return *(const Lanes*)from; }

QSR_INLINE void store(float* to, Lanes value) { *(Lanes*)to = value; }

// B' d: eight values to the points.
QSR_INLINE void to_points(const Lanes d[kPatch], Lanes t[kPatch]) {
  t[0] = d[0] - d[6] + (d[4] - d[2]) * 5.25f;
  t[7] = d[7] - d[1] + (d[3] - d[5]) * 5.25f;
  const Lanes even1 = d[2] + d[6] - d[4] * 4.25f, odd1 = d[1] + d[5] - d[3] * 4.25f;
  t[1] = even1 + odd1, t[2] = even1 - odd1;
  const Lanes even2 = d[6] + d[2] * 0.25f - d[4] * 1.25f;
  const Lanes odd2 = d[1] * 0.5f - d[3] * 2.5f + d[5] * 2.0f;
  t[3] = even2 + odd2, t[4] = even2 - odd2;
  const Lanes even3 = d[6] + d[2] * 4.0f - d[4] * 5.0f;
  const Lanes odd3 = d[1] * 2.0f - d[3] * 2.5f + d[5] * 0.5f;
  t[5] = even3 + odd3, t[6] = even3 - odd3;
}

// A' m: from the points to four outputs.
QSR_INLINE void from_points(const Lanes m[kPatch], Lanes y[kTile]) {
  const Lanes s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  const Lanes s3 = m[5] + m[6], d3 = m[5] - m[6];
  y[0] = m[0] + s1 + (s2 + s3);
  y[1] = d1 + (d2 * 2.0f + d3 * 0.5f);
  y[2] = s1 + (s2 * 4.0f + s3 * 0.25f);
  y[3] = m[7] + d1 + (d2 * 8.0f + d3 * 0.125f);
}

// B' D B of one patch at `in` (rows apart by `row`): to [64 positions] at `stride`.
inline void transform_patch(const float* in, int64_t row, int64_t channels, float* to,
                            int64_t stride) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Lanes rows[kPatch][kPatch];
    for (int i = 0; i < kPatch; ++i) {
      Lanes d[kPatch];
      for (int k = 0; k < kPatch; ++k) d[k] = load(in + i * row + k * channels + c);
      to_points(d, rows[i]);
    }
    for (int j = 0; j < kPatch; ++j) {
      Lanes d[kPatch], t[kPatch];
      for (int i = 0; i < kPatch; ++i) d[i] = rows[i][j];
      to_points(d, t);
      for (int i = 0; i < kPatch; ++i) store(to + (i * kPatch + j) * stride + c, t[i]);
    }
  }
}

// The patch of tile (ty, tx), with zeros outside of the picture, [8, 8, channels].
inline void framed_patch(const Tail& job, int64_t ty, int64_t tx, float* to) {
  for (int64_t i = 0; i < kPatch; ++i)
    for (int64_t k = 0; k < kPatch; ++k, to += job.channels) {
      const int64_t y = ty * kTile + i - kReach, x = tx * kTile + k - kReach;
      const bool inside = y >= 0 && y < job.height && x >= 0 && x < job.width;
      const float* from = job.features + (y * job.width + x) * job.channels;
      for (int64_t c = 0; c < job.channels; ++c) to[c] = inside ? from[c] : 0.0f;
    }
}

// Sums over channels of kTiles tiles at one position, `vectors` vectors of outputs.
template <int vectors>
QSR_INLINE void products(const float* a, int64_t channels, const float* w, int64_t outputs,
                         float* to) {
  Lanes sum[kTiles][vectors] = {};
  for (int64_t c = 0; c < channels; ++c, w += outputs) {
    Lanes weight[vectors];
    for (int v = 0; v < vectors; ++v) weight[v] = load(w + v * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[t][v] = fma(a[t * channels + c], weight[v], sum[t][v]);
  }
  for (int t = 0; t < kTiles; ++t)
    for (int v = 0; v < vectors; ++v) store(to + t * outputs + v * kLanes, sum[t][v]);
}

// Values [outputs] of the lr pixel (y, x) to their places in sr.
QSR_INLINE void shuffle(const Tail& job, const float* values, int64_t y, int64_t x) {
  const int64_t s = job.scale, sr_width = s * job.width, plane = s * job.height * sr_width;
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t i = 0; i < s; ++i) {
      float* to = job.sr + c * plane + (s * y + i) * sr_width + s * x;
      const float* from = values + (c * s + i) * s;
      if (s == 4)
        __builtin_memcpy(to, from, 4 * sizeof(float));
      else if (s == 2)
        __builtin_memcpy(to, from, 2 * sizeof(float));
      else
        for (int64_t k = 0; k < s; ++k) to[k] = from[k];
    }
}

int axis_class(int64_t at, int64_t length) {  // FIRST, INSIDE, LAST, ONLY of qsr/integer/tail.py
  if (length == 1) return 3;
  return at == 0 ? 0 : at == length - 1 ? 2 : 1;
}

// Outputs [o, o + vectors * kLanes) of one pixel by the definition, with the weights of its class.
// Even and odd channels are summed apart, so that an addition need not wait for the one before.
template <int vectors>
QSR_INLINE void ring_outputs(const Tail& job, int64_t y, int64_t x, int64_t o, float* to) {
  const int pixel_class = axis_class(y, job.height) * kTailClasses + axis_class(x, job.width);
  const float* weights = job.ring + pixel_class * 25 * job.channels * job.outputs + o;
  Lanes even[vectors], odd[vectors] = {};
  for (int v = 0; v < vectors; ++v)
    even[v] = load(job.biases + pixel_class * job.outputs + o + v * kLanes);
  for (int64_t i = -kReach; i <= kReach; ++i)
    for (int64_t k = -kReach; k <= kReach; ++k) {
      if (y + i < 0 || y + i >= job.height || x + k < 0 || x + k >= job.width) continue;
      const float* from = job.features + ((y + i) * job.width + x + k) * job.channels;
      const float* w = weights + ((i + kReach) * 5 + k + kReach) * job.channels * job.outputs;
      for (int64_t c = 0; c < job.channels; c += 2, w += 2 * job.outputs)
        for (int v = 0; v < vectors; ++v) {
          even[v] = fma(from[c], load(w + v * kLanes), even[v]);
          odd[v] = fma(from[c + 1], load(w + job.outputs + v * kLanes), odd[v]);
        }
    }
  for (int v = 0; v < vectors; ++v) store(to + v * kLanes, even[v] + odd[v]);
}

inline void ring_pixel(const Tail& job, int64_t y, int64_t x) {
  alignas(64) float values[kMaxOutputs];
  int64_t o = 0;
  for (; o + 3 * kLanes <= job.outputs; o += 3 * kLanes) ring_outputs<3>(job, y, x, o, values + o);
  for (; o < job.outputs; o += kLanes) ring_outputs<1>(job, y, x, o, values + o);
  shuffle(job, values, y, x);
}

// Tiles [first, first + count) of one strip, count at most kTiles.
inline void group(const Tail& job, int64_t ty, int64_t first, int64_t count, float* patches,
                  float* m, float* frame) {
  const int64_t row = job.width * job.channels, stride = kTiles * job.channels;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t y = ty * kTile - kReach, x = (first + t) * kTile - kReach;
    const bool whole = y >= 0 && x >= 0 && y + kPatch <= job.height && x + kPatch <= job.width;
    if (whole) {
      transform_patch(job.features + y * row + x * job.channels, row, job.channels,
                      patches + t * job.channels, stride);
    } else {
      framed_patch(job, ty, first + t, frame);
      transform_patch(frame, kPatch * job.channels, job.channels, patches + t * job.channels,
                      stride);
    }
  }
  for (int p = 0; p < kPositions; ++p) {
    const float *a = patches + p * stride, *w = job.inside + p * job.channels * job.outputs;
    float* to = m + p * kTiles * job.outputs;
    int64_t o = 0;
    for (; o + 3 * kLanes <= job.outputs; o += 3 * kLanes)
      products<3>(a, job.channels, w + o, job.outputs, to + o);
    for (; o < job.outputs; o += kLanes) products<1>(a, job.channels, w + o, job.outputs, to + o);
  }
  alignas(64) float values[kTile][kTile][kMaxOutputs];
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t o = 0; o < job.outputs; o += kLanes) {
      const Lanes bias = load(job.biases + 5 * job.outputs + o);  // class inside, inside
      Lanes columns[kPatch][kTile];
      for (int j = 0; j < kPatch; ++j) {
        Lanes column[kPatch];
        for (int i = 0; i < kPatch; ++i)
          column[i] = load(m + ((i * kPatch + j) * kTiles + t) * job.outputs + o);
        from_points(column, columns[j]);
      }
      for (int r = 0; r < kTile; ++r) {
        Lanes line[kPatch], y[kTile];
        for (int j = 0; j < kPatch; ++j) line[j] = columns[j][r];
        from_points(line, y);
        for (int x = 0; x < kTile; ++x) store(values[r][x] + o, y[x] + bias);
      }
    }
    for (int64_t r = 0; r < kTile; ++r)
      for (int64_t k = 0; k < kTile; ++k) {
        const int64_t y = ty * kTile + r, x = (first + t) * kTile + k;
        if (y < job.height && x < job.width) shuffle(job, values[r][k], y, x);
      }
  }
}

void run(const Tail& job, int64_t first, int64_t last) {
  const int64_t tiles = (job.width + kTile - 1) / kTile;
  // Uninitialised where a last group is not full: those sums are computed and not used.
  float* scratch = static_cast<float*>(__builtin_malloc(
      sizeof(float) * kPositions * (kTiles * (job.channels + job.outputs) + job.channels)));
  float *patches = scratch, *m = patches + kPositions * kTiles * job.channels;
  float* frame = m + kPositions * kTiles * job.outputs;
  for (int64_t k = 0; k < kPositions * kTiles * job.channels; ++k) patches[k] = 0.0f;
  for (int64_t ty = first; ty < last; ++ty) {
    for (int64_t tx = 0; tx < tiles; tx += kTiles)
      group(job, ty, tx, tiles - tx < kTiles ? tiles - tx : kTiles, patches, m, frame);
    const int64_t end = (ty + 1) * kTile < job.height ? (ty + 1) * kTile : job.height;
    for (int64_t y = ty * kTile; y < end; ++y)
      for (int64_t x = 0; x < job.width; ++x)
        if (y == 0 || y == job.height - 1 || x == 0 || x == job.width - 1) ring_pixel(job, y, x);
  }
  __builtin_free(scratch);
}
