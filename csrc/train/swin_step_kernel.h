// Attention inside windows, LayerNorm and GELU for training; one source for every instruction set.
// A file chooses its target, says how wide a vector is (kLanes, Lanes), how many vectors of sums
// fit the registers (kSums), what a fused multiply-add, the larger of two and the sum over lanes
// are, how numbers are read and written (load_some, store_some), and the products it has (Single,
// and Half, which may be Single again), then includes this inside its own anonymous namespace.
//
// One head of one window is 64 queries, keys and values of some ten numbers: everything between
// reading and writing it lies in the first-level cache. All products are one small routine,
// `product`. Where a product sums over several numbers at a time (Half: two), a word of 32 bits
// holds them: P::kPer consecutive ones.
//
// Scores are kept as [key, query], so that the softmax of 16 queries is made lane by lane, without
// a sum across a vector. Backward makes the probabilities again, from what forward left of each
// query (the largest score and the sum): 16 exponentials are a dozen instructions, and a matrix of
// probabilities that need not be remembered is the memory of a step.

typedef Vector<kLanes>::Int Ints;

QSR_INLINE Lanes load(const float* from) { return *(const Lanes*)from; }
QSR_INLINE void store(float* to, Lanes value) { *(Lanes*)to = value; }

constexpr float kLog2e = 1.44269504f;
constexpr float kPerRootTwoPi = 0.398942280f;
constexpr float kApart = -100.0f * kLog2e;  // of pixels that the shift brought together

QSR_INLINE Lanes all(float x) { return Lanes{} + x; }

// 2^x, x <= 0, to 1e-7; nothing below 2^-100, so that products stay normal numbers. NaN stays NaN.
QSR_INLINE Lanes exp2(Lanes x) {
  constexpr float magic = kMagic + 127.0f;
  const Lanes shifted = x + magic, f = x - (shifted - magic);
  Lanes y = fma(f, all(0.001327647219098223f), all(0.009675541616274378f));
  y = fma(y, f, all(0.055507132753364594f));
  y = fma(y, f, all(0.2402211971865223f));
  y = fma(y, f, all(0.6931469670621001f));
  y = fma(y, f, all(1.0000000716557271f));
  return x < -100.0f ? Lanes{} : y * (Lanes)((Ints)shifted << 23);
}

// Zeroed scratch memory. (A container of the standard library would be compiled for this target
// under a name that it shares with other files.)
template <class T>
struct Scratch {
  T* at;
  explicit Scratch(int64_t count) : at(static_cast<T*>(__builtin_calloc(count, sizeof(T)))) {
    if (!at) throw std::bad_alloc();
  }
  ~Scratch() { __builtin_free(at); }
  Scratch(const Scratch&) = delete;
};

QSR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Products ----------------------------------------------------------------------------------------

// out[r][n] (+)= sum over k < depth of left(r, k) right[k][n], for `rows` rows and `vectors`
// vectors. The word left(r, k) lies at r * row + k * step; both are known to the compiler, so that
// one register reaches all rows.
template <class P, int rows, int vectors, int row, int step>
QSR_INLINE void tile(const float* left, const float* right, int64_t right_row, int64_t depth,
                     float* out, int64_t out_row, bool add) {
  Lanes sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      sum[r][v] = add ? load(out + r * out_row + v * kLanes) : Lanes{};
  for (int64_t k = 0; k < depth; ++k, left += step, right += right_row) {
    Lanes words[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) words[v] = load(right + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = P::dot(left[r * row], words[v], sum[r][v]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(out + r * out_row + v * kLanes, sum[r][v]);
}

template <class P, int vectors, int row, int step>
QSR_INLINE void product(const float* left, int64_t rows, const float* right, int64_t right_row,
                        int64_t depth, float* out, int64_t out_row, bool add) {
  constexpr int block = kSums / vectors;
  int64_t r = 0;
  for (; r + block <= rows; r += block)
    tile<P, block, vectors, row, step>(left + r * row, right, right_row, depth, out + r * out_row,
                                       out_row, add);
  for (; r < rows; ++r)
    tile<P, 1, vectors, row, step>(left + r * row, right, right_row, depth, out + r * out_row,
                                   out_row, add);
}

// Attention ---------------------------------------------------------------------------------------

constexpr int kStrip = 2;                      // vectors of queries at once
constexpr int64_t kQueries = kStrip * kLanes;  // divides kTokenGroup

// q, k, v or dL/dout of one head in one window, in the three layouts in which a product can ask for
// it; zeros where there is no token or channel.
struct Operand {
  float* rows;     // [wide / 16, padded, 16 / P::kPer]: a word holds consecutive channels
  float* columns;  // [words, padded]: the same words
  float* pairs;    // [padded / P::kPer, wide]: a word holds a channel of consecutive tokens
};

template <class P>
struct Head {
  static constexpr int kChannelWords = 16 / P::kPer, kStripWords = kQueries / P::kPer;
  const TrainAttention& job;
  const int64_t wide, words, token_words;  // wide: depth filled up to whole vectors
  Scratch<float> memory;
  Scratch<int64_t> places;
  Scratch<int32_t> regions;
  int64_t* place;   // of each token: the number of its pixel
  int32_t* region;  // of each token: tokens of different regions do not see each other
  int64_t head = 0;
  bool parted = false;
  Operand q, k, v, g;
  float *p, *dp;           // [pixels, kQueries]: scores, probabilities; dL/dprobabilities
  float *p_rows, *s_rows;  // [pixels, kStripWords]: probabilities, dL/dscores; words of queries
  float* pairs;            // [padded / kPer, kQueries]: one of both; words of keys
  float *out, *dk, *dv;    // [padded, wide]
  float *scales, *ones;    // [padded]: 1 / sqrt(depth), and 1

  explicit Head(const TrainAttention& job)
      : job(job),
        wide((job.depth + 15) / 16 * 16),
        words(wide / P::kPer),
        token_words(job.padded / P::kPer),
        memory(job.padded * (8 * words + 3 * kQueries + 2 * kStripWords + 3 * wide + 2) +
               4 * token_words * wide),
        places(job.padded),
        regions(job.padded),
        place(places.at),
        region(regions.at) {
    float* at = memory.at;
    const auto take = [&](int64_t count) { return (at += count) - count; };
    for (Operand* each : {&q, &k, &v, &g}) {
      each->rows = take(job.padded * words), each->columns = take(job.padded * words);
      each->pairs = take(token_words * wide);
    }
    for (float** strip : {&p, &dp, &pairs}) *strip = take(job.padded * kQueries);
    for (float** rows : {&p_rows, &s_rows}) *rows = take(job.padded * kStripWords);
    for (float** numbers : {&out, &dk, &dv}) *numbers = take(job.padded * wide);
    scales = take(job.padded), ones = take(job.padded);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(job.depth));
    for (int64_t t = 0; t < job.padded; ++t) scales[t] = scale, ones[t] = 1.0f;
  }

  // A window, counted through all pictures: where its tokens lie.
  void enter(int64_t window) {
    const int64_t across = job.width / job.window, down = job.height / job.window;
    const int64_t left = window % across * job.window;
    const int64_t top = window / across % down * job.window;
    const int64_t picture = window / (across * down);
    const auto side = [&](int64_t at, int64_t length) {
      return static_cast<int32_t>((at >= length - job.window) + (at >= length - job.shift));
    };
    parted = job.shift > 0 && (left + job.window == job.width || top + job.window == job.height);
    for (int64_t t = 0; t < job.pixels; ++t) {
      const int64_t y = top + t / job.window, x = left + t % job.window;
      place[t] = (picture * job.height + (y + job.shift) % job.height) * job.width +
                 (x + job.shift) % job.width;
      region[t] = side(y, job.height) * 3 + side(x, job.width);
    }
  }

  // Only the layouts that are asked for; a transpose needs rows.
  template <bool rows, bool pairs>
  void lay_out(const void* from, int64_t part, int64_t parts, Operand to) {
    // What a store through an intrinsic might change for all that the compiler knows, it reads
    // again: so these have names of their own, here and below.
    const int64_t depth = job.depth, pixels = job.pixels, padded = job.padded, wide = this->wide;
    const int64_t stride = parts * job.heads * depth, base = (part * job.heads + head) * depth;
    const int64_t* place = this->place;
    const bool half = job.half;
    for (int64_t c = 0; c < depth; c += kLanes) {
      const int64_t count = least(depth - c, kLanes);
      for (int64_t t = 0; t < padded; t += P::kPer) {
        Lanes tokens[P::kPer] = {};
        for (int i = 0; i < P::kPer; ++i) {
          if (t + i < pixels)
            tokens[i] = load_some(from, half, place[t + i] * stride + base + c, count);
          if (rows)
            P::store_row(to.rows + (c / 16 * padded + t + i) * kChannelWords + c % 16 / P::kPer,
                         tokens[i]);
        }
        if (pairs) store(to.pairs + t / P::kPer * wide + c, P::join(tokens));
      }
    }
  }

  void transpose(Operand of) {
    const int64_t used = (job.depth + P::kPer - 1) / P::kPer, padded = job.padded;
    for (int64_t c = 0; c < used; ++c) {
      const float* from = of.rows + c / kChannelWords * padded * kChannelWords + c % kChannelWords;
      for (int64_t t = 0; t < padded; ++t) of.columns[c * padded + t] = from[t * kChannelWords];
    }
  }

  // [keys, kQueries]: sums over channels for the queries from `first` on.
  void over_channels(Operand keys, Operand queries, int64_t first, float* to) {
    const int64_t used = (job.depth + P::kPer - 1) / P::kPer;
    for (int64_t c = 0; c < used; c += kChannelWords)
      product<P, kStrip, kChannelWords, 1>(keys.rows + c * job.padded, job.pixels,
                                           queries.columns + c * job.padded + first, job.padded,
                                           least(used - c, kChannelWords), to, kQueries, c > 0);
  }

  // [queries of a strip, wide]: sums over keys of `pairs` and what belongs to the keys.
  void over_keys(Operand keys, float* to) {
    for (int64_t c = 0; c < wide; c += kLanes)
      product<P, 1, 1, kQueries>(pairs, kQueries, keys.pairs + c, wide, token_words, to + c, wide,
                                 false);
  }

  // [keys, wide]: sums over the queries of a strip of rows [keys, kStripWords] and what belongs to
  // the queries; added to those of the strips before.
  void over_queries(const float* rows, Operand queries, int64_t first, float* to) {
    for (int64_t c = 0; c < wide; c += kLanes)
      product<P, 1, kStripWords, 1>(rows, job.pixels, queries.pairs + first / P::kPer * wide + c,
                                    wide, kStripWords, to + c, wide, first > 0);
  }

  // `count` tokens from number `first` on: rows of `wide`, times `scale`.
  void write(void* to, int64_t part, int64_t parts, int64_t first, int64_t count, const float* from,
             const float* scale) {
    const int64_t depth = job.depth, wide = this->wide;
    const int64_t stride = parts * job.heads * depth, base = (part * job.heads + head) * depth;
    const int64_t* place = this->place + first;
    const bool half = job.half;
    for (int64_t c = 0; c < depth; c += kLanes) {
      const int64_t some = least(depth - c, kLanes);
      for (int64_t t = 0; t < count; ++t)
        store_some(to, half, place[t] * stride + base + c, some,
                   load(from + t * wide + c) * scale[t]);
    }
  }

  // The exponent of 2 of a score: q k / sqrt(depth) + bias, less where regions differ.
  template <bool parts>
  QSR_INLINE Lanes exponent(const float* score, const float* bias, int64_t key, int64_t query,
                            float scale) const {
    Lanes x = fma(load(score), all(scale), load(bias));
    if (parts) {
      const Ints differ = *(const Ints*)(region + query) != region[key];
      x += (Lanes)(differ & (Ints)all(kApart));
    }
    return x;
  }

  template <bool parts>
  void softmax(int64_t first, const float* bias, float* largest, float* inverse) {
    const float scale = kLog2e * scales[0];
    const int64_t pixels = job.pixels, padded = job.padded;
    float *p = this->p, *pairs = this->pairs;
    for (int64_t i = 0; i < kQueries; i += kLanes) {
      Lanes most = all(-1e30f), sum = {};
      for (int64_t j = 0; j < pixels; ++j) {
        float* at = p + j * kQueries + i;
        const Lanes x = exponent<parts>(at, bias + j * padded + first + i, j, first + i, scale);
        most = larger(x, most);
        store(at, x);
      }
      for (int64_t j = 0; j < pixels; j += P::kPer) {
        Lanes e[P::kPer] = {};
        for (int n = 0; n < P::kPer && j + n < pixels; ++n) {
          e[n] = exp2(load(p + (j + n) * kQueries + i) - most);
          sum += e[n];
        }
        store(pairs + j / P::kPer * kQueries + i, P::join(e));
      }
      store(largest + first + i, most);
      store(inverse + first + i, 1.0f / sum);
    }
  }

  void forward(int64_t window, int64_t which) {
    head = which;
    lay_out<true, false>(job.qkv, 0, 3, q), transpose(q);
    lay_out<true, false>(job.qkv, 1, 3, k);
    lay_out<false, true>(job.qkv, 2, 3, v);
    const float* bias = job.bias + head * job.pixels * job.padded;
    float* largest = job.softmax + (window * job.heads + head) * 2 * job.padded;
    float* inverse = largest + job.padded;
    for (int64_t first = 0; first < job.pixels; first += kQueries) {
      over_channels(k, q, first, p);
      parted ? softmax<true>(first, bias, largest, inverse)
             : softmax<false>(first, bias, largest, inverse);
      over_keys(v, out);
      write(job.out, 0, 1, first, least(kQueries, job.pixels - first), out, inverse + first);
    }
  }

  // Probabilities p, and dL/dscores, p (dp - sum over keys of p dp), into rows and pairs.
  template <bool parts>
  void softmax_backward(int64_t first, const float* bias, float* dbias, const float* largest,
                        const float* inverse) {
    const float scale = kLog2e * scales[0];
    const int64_t pixels = job.pixels, padded = job.padded;
    float *p = this->p, *dp = this->dp, *pairs = this->pairs;
    float *p_rows = this->p_rows, *s_rows = this->s_rows;
    for (int64_t i = 0; i < kQueries; i += kLanes) {
      const Lanes most = load(largest + first + i), share = load(inverse + first + i);
      Lanes mean = {};
      for (int64_t j = 0; j < pixels; ++j) {
        float* at = p + j * kQueries + i;
        const Lanes x = exponent<parts>(at, bias + j * padded + first + i, j, first + i, scale);
        const Lanes probability = exp2(x - most) * share;
        mean = fma(probability, load(dp + j * kQueries + i), mean);
        store(at, probability);
      }
      for (int64_t j = 0; j < pixels; j += P::kPer) {
        Lanes d[P::kPer] = {};
        for (int n = 0; n < P::kPer && j + n < pixels; ++n) {
          const int64_t at = (j + n) * kQueries + i;
          const int64_t word = (j + n) * kStripWords + i / P::kPer;
          float* sum = dbias + (j + n) * padded + first + i;
          const Lanes probability = load(p + at);
          d[n] = probability * (load(dp + at) - mean);
          store(sum, load(sum) + d[n]);
          P::store_row(p_rows + word, probability);
          P::store_row(s_rows + word, d[n]);
        }
        store(pairs + j / P::kPer * kQueries + i, P::join(d));
      }
    }
  }

  void backward(int64_t window, int64_t which, float* dbias) {
    head = which;
    lay_out<true, true>(job.qkv, 0, 3, q), transpose(q);
    lay_out<true, true>(job.qkv, 1, 3, k);
    lay_out<true, false>(job.qkv, 2, 3, v);
    lay_out<true, true>(job.g, 0, 1, g), transpose(g);
    const float* bias = job.bias + head * job.pixels * job.padded;
    const float* largest = job.softmax + (window * job.heads + head) * 2 * job.padded;
    const float* inverse = largest + job.padded;
    for (int64_t first = 0; first < job.pixels; first += kQueries) {
      over_channels(k, q, first, p), over_channels(v, g, first, dp);
      parted ? softmax_backward<true>(first, bias, dbias, largest, inverse)
             : softmax_backward<false>(first, bias, dbias, largest, inverse);
      over_keys(k, out);
      over_queries(s_rows, q, first, dk), over_queries(p_rows, g, first, dv);
      write(job.dqkv, 0, 3, first, least(kQueries, job.pixels - first), out, scales);
    }
    write(job.dqkv, 1, 3, 0, job.pixels, dk, scales);
    write(job.dqkv, 2, 3, 0, job.pixels, dv, ones);
  }
};

template <class P>
void each_window(const TrainAttention& job, int64_t first, int64_t last, bool backward) {
  Head<P> head(job);
  const int64_t square = job.pixels * job.padded;
  for (int64_t window = first * job.chunk; window < least(last * job.chunk, job.windows);
       ++window) {
    head.enter(window);
    for (int64_t h = 0; h < job.heads; ++h)
      if (backward)
        head.backward(window, h, job.dbias + (window / job.chunk * job.heads + h) * square);
      else
        head.forward(window, h);
  }
}

void attention(const TrainAttention& job, int64_t first, int64_t last) {
  job.half_products ? each_window<Half>(job, first, last, false)
                    : each_window<Single>(job, first, last, false);
}

void attention_backward(const TrainAttention& job, int64_t first, int64_t last) {
  job.half_products ? each_window<Half>(job, first, last, true)
                    : each_window<Single>(job, first, last, true);
}

// do_some(c, count) for vectors of a row: whole ones, for which the compiler needs no mask, and the
// rest of it.
template <class Work>
QSR_INLINE void in_vectors(int64_t length, const Work& do_some) {
  int64_t c = 0;
  for (; c + kLanes <= length; c += kLanes) do_some(c, kLanes);
  if (c < length) do_some(c, length - c);
}

// LayerNorm ---------------------------------------------------------------------------------------
//
//   x^ = (x - mean) / deviation,   y = x^ weight + bias
//   dx = (h - mean of h - x^ mean of h x^) / deviation,   h = g weight

struct Rows {  // of a norm: numbers of one at a time in float32, zeros after the last channel
  const TrainNorm& job;
  Scratch<float> memory;
  float *weight, *bias, *x, *g;

  explicit Rows(const TrainNorm& job) : job(job), memory(4 * job.padded) {
    weight = memory.at, bias = weight + job.padded;
    x = bias + job.padded, g = x + job.padded;
    for (int64_t c = 0; c < job.channels; ++c) weight[c] = job.weight[c], bias[c] = job.bias[c];
  }

  void forward(int64_t row) {
    const int64_t channels = job.channels, start = row * channels;
    const bool half = job.half;
    const float share = 1.0f / static_cast<float>(channels);
    Lanes sum = {}, squares = {};
    in_vectors(channels, [&](int64_t c, int64_t count) QSR_INLINED {
      const Lanes value = load_some(job.x, half, start + c, count);
      sum += value;
      store(x + c, value);
    });
    const float mean = total(sum) * share;
    in_vectors(channels, [&](int64_t c, int64_t count) QSR_INLINED {
      const Lanes apart = first(load(x + c) - mean, count);
      squares = fma(apart, apart, squares);
      store(x + c, apart);
    });
    const float inverse = 1.0f / __builtin_sqrtf(total(squares) * share + job.eps);
    job.moments[2 * row] = mean, job.moments[2 * row + 1] = inverse;
    in_vectors(channels, [&](int64_t c, int64_t count) QSR_INLINED {
      store_some(job.y, half, start + c, count,
                 fma(load(x + c) * inverse, load(weight + c), load(bias + c)));
    });
  }

  void backward(int64_t row, float* dweight, float* dbias) {
    const int64_t channels = job.channels, start = row * channels;
    const bool half = job.half;
    const float share = 1.0f / static_cast<float>(channels);
    const float mean = job.moments[2 * row], inverse = job.moments[2 * row + 1];
    Lanes sum = {}, products = {};
    in_vectors(channels, [&](int64_t c, int64_t count) QSR_INLINED {
      const Lanes normal = first(load_some(job.x, half, start + c, count) - mean, count) * inverse;
      const Lanes grad = load_some(job.g, half, start + c, count), h = grad * load(weight + c);
      store(dweight + c, fma(grad, normal, load(dweight + c)));
      store(dbias + c, load(dbias + c) + grad);
      sum += h, products = fma(h, normal, products);
      store(x + c, normal), store(g + c, h);
    });
    const float h_mean = total(sum) * share, product = total(products) * share;
    in_vectors(channels, [&](int64_t c, int64_t count) QSR_INLINED {
      store_some(job.dx, half, start + c, count,
                 (load(g + c) - h_mean - load(x + c) * product) * inverse);
    });
  }
};

void norm(const TrainNorm& job, int64_t first, int64_t last) {
  Rows rows(job);
  for (int64_t r = first * job.chunk; r < least(last * job.chunk, job.rows); ++r) rows.forward(r);
}

void norm_backward(const TrainNorm& job, int64_t first, int64_t last) {
  Rows rows(job);
  for (int64_t chunk = first; chunk < last; ++chunk) {
    float* sums = job.sums + chunk * 2 * job.padded;
    for (int64_t r = chunk * job.chunk; r < least((chunk + 1) * job.chunk, job.rows); ++r)
      rows.backward(r, sums, sums + job.padded);
  }
}

// GELU --------------------------------------------------------------------------------------------
//
//   y = x Phi(x),   dx = (Phi(x) + x phi(x)) g
//
// phi(x) = exp(-x^2 / 2) / sqrt(2 pi), and one exponential serves both: Phi(-|x|) is that times a
// polynomial of 1 / (1 + 0.2316419 |x|), to 1e-7 (Abramowitz and Stegun, 26.2.17).

struct Normal {
  Lanes below, density;  // Phi(x), sqrt(2 pi) phi(x)
};

QSR_INLINE Normal normal(Lanes x) {
  const Lanes size = x < 0.0f ? -x : x, e = exp2(x * x * (-0.5f * kLog2e));
  const Lanes t = 1.0f / fma(size, all(0.2316419f), all(1.0f));
  Lanes y = fma(t, all(1.330274429f), all(-1.821255978f));
  y = fma(y, t, all(1.781477937f));
  y = fma(y, t, all(-0.356563782f));
  y = fma(y, t, all(0.319381530f));
  const Lanes tail = y * t * e * kPerRootTwoPi;
  return {x < 0.0f ? tail : 1.0f - tail, e};
}

void gelu(const TrainGelu& job, int64_t first, int64_t last) {
  const int64_t start = first * job.chunk;
  in_vectors(least(last * job.chunk, job.count) - start, [&](int64_t c, int64_t count) QSR_INLINED {
    const Lanes x = load_some(job.x, job.half, start + c, count);
    store_some(job.y, job.half, start + c, count, x * normal(x).below);
  });
}

void gelu_backward(const TrainGelu& job, int64_t first, int64_t last) {
  const int64_t start = first * job.chunk;
  in_vectors(least(last * job.chunk, job.count) - start, [&](int64_t c, int64_t count) QSR_INLINED {
    const Lanes x = load_some(job.x, job.half, start + c, count);
    const Normal at = normal(x);
    store_some(job.y, job.half, start + c, count,
               fma(x * at.density, all(kPerRootTwoPi), at.below) *
                   load_some(job.g, job.half, start + c, count));
  });
}
