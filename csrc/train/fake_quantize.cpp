// Fake quantisation for training, forward and backward in one pass each:
//
//   forward    z = (x + tau) / step,  y = round(clamp(z)) * step
//   backward   z again from x (nothing but x is kept), s = slope(z) inside, 0 outside
//              dx = g s,   dtau = sum of g s,   dstep = sum of g (round(clamp(z)) - s z), scaled
//
// PyTorch's own operators walk over memory a dozen times for the same (qsr/quantizer.py, the plain
// definition): with them a quantised training step takes 1.2 to 1.5 times a float one, with these
// 1.05 to 1.14 times, and two thirds of the memory (`qsr bench train`).
//
// In 16 bits (`codes`) y is round(clamp(z)) alone as bfloat16, in which a code is exact, for a
// layer that multiplies codes and scales the sums; g is then the gradient of that, bfloat16 too.
//
// Everything is a plain loop over one tile of elements with one tau and one running sum each, which
// the compiler turns into vectors. Tiles are summed over chunks of a fixed length, chunks in order
// of their number: results do not depend on the number of threads.
#include "train/fake_quantize.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu.h"
#include "kernels.h"

namespace qsr {
namespace {

#include "floats.h"

constexpr int64_t kChunk = 8192;  // elements, about
constexpr int64_t kLongestTile = 4096;

QSR_INLINE float round_even(float z) { return (z + kMagic) - kMagic; }
// NaN stays NaN: training has to notice it.
QSR_INLINE float clamp(float z, float low, float high) {
  z = z < low ? low : z;
  return z > high ? high : z;
}

// exp(-y) for y in [0, 80], to 2e-7: 2^t of t = -y log2(e), by the polynomial and the exponent.
QSR_INLINE float exp_minus(float y) {
  const float t = y * -1.44269504f, shifted = t + kMagic, p = exp2_fraction(t - (shifted - kMagic));
  const int32_t n = __builtin_bit_cast(int32_t, shifted) << 23;
  return __builtin_bit_cast(float, __builtin_bit_cast(int32_t, p) + n);
}

// phi'(u) = k / (2 tanh(k / 2)) sech(k (u - 1/2))^2, and sech(t)^2 = 4 e / (1 + e)^2, e = exp(-2t).
QSR_INLINE float slope(float u, float sharpness, float scale) {
  const float y = 2.0f * __builtin_fabsf(sharpness * (u - 0.5f));
  const float e = exp_minus(y > 80.0f ? 80.0f : y), d = 1.0f + e;
  return scale * (4.0f * e) / (d * d);
}

// The taus of one tile: of all channels again and again, or one of a plane.
void fill_tile(const FakeQuantize& job, int64_t span, float* tau) {
  const int64_t channel = job.period == 1 ? span % job.channels : 0;
  for (int64_t j = 0; j < job.tile; ++j)
    tau[j] = job.tau ? job.tau[channel + j % job.period] : 0.0f;
}

struct Chunk {
  int64_t span, from, count;  // elements x[from], ..., x[from + count - 1]
  float step;
};

QSR_INLINE Chunk chunk_of(const FakeQuantize& job, int64_t number) {
  const int64_t span = number / job.chunks_a_span, part = number % job.chunks_a_span;
  const int64_t start = part * job.chunk;
  const float step = job.step[job.steps == 1 ? 0 : span];
  return {span, span * job.span + start, std::min(job.chunk, job.span - start),
          std::max(step, job.min_step)};
}

// The upper half of a float. Exact for whole numbers up to 256.
struct Bfloat16 {
  uint16_t bits;
};
QSR_INLINE void store(float* y, float code, float step) { *y = code * step; }
QSR_INLINE void store(Bfloat16* y, float code, float) {
  y->bits = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, code) >> 16);
}
// dL/dy as a gradient of the values; `inverse` is 1 / step.
QSR_INLINE float load(const float* g, float) { return *g; }
QSR_INLINE float load(const Bfloat16* g, float inverse) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(g->bits) << 16) * inverse;
}

template <class T>
QSR_INLINE void forward_tile(const FakeQuantize& job, const float* x, T* y, int64_t count,
                             const float* tau, float step) {
  for (int64_t j = 0; j < count; ++j)
    store(y + j, round_even(clamp((x[j] + tau[j]) / step, job.qmin, job.qmax)), step);
}

template <bool straight, class T>
QSR_INLINE void backward_tile(const FakeQuantize& job, const float* x, const T* g, float* dx,
                              int64_t count, const float* tau, float step, float* dtau,
                              float* dstep) {
  const float inverse = 1.0f / step;
  const float qmin = job.qmin, qmax = job.qmax, k = job.sharpness, scale = job.slope_scale;
#pragma GCC ivdep  // dx, dtau and dstep lie apart from all else
  for (int64_t j = 0; j < count; ++j) {
    const float z = (x[j] + tau[j]) / step, c = clamp(z, qmin, qmax), code = round_even(c);
    const float inside = z == c, floor = code - static_cast<float>(code > c);
    const float s = straight ? inside : inside * slope(c - floor, k, scale);
    const float grad = load(g + j, inverse);
    dx[j] = grad * s;
    dtau[j] += grad * s;
    dstep[j] += grad * (code - s * c);
  }
}

template <class T>
QSR_INLINE void forward_tiles(const FakeQuantize& job, const Chunk& chunk, const float* tau) {
  T* y = static_cast<T*>(job.y);
  for (int64_t at = 0; at < chunk.count; at += job.tile)
    forward_tile(job, job.x + chunk.from + at, y + chunk.from + at,
                 std::min(job.tile, chunk.count - at), tau, chunk.step);
}

template <bool straight, class T>
QSR_INLINE void backward_tiles(const FakeQuantize& job, const Chunk& chunk, const float* tau,
                               float* dtau, float* dstep) {
  const T* g = static_cast<const T*>(job.g);
  float* dx = static_cast<float*>(job.y);
  for (int64_t at = 0; at < chunk.count; at += job.tile) {
    const int64_t from = chunk.from + at, count = std::min(job.tile, chunk.count - at);
    backward_tile<straight>(job, job.x + from, g + from, dx + from, count, tau, chunk.step, dtau,
                            dstep);
  }
}

QSR_CLONES void forward_chunk(const FakeQuantize& job, const Chunk& chunk, const float* tau) {
  job.codes ? forward_tiles<Bfloat16>(job, chunk, tau) : forward_tiles<float>(job, chunk, tau);
}

QSR_CLONES void backward_chunk(const FakeQuantize& job, const Chunk& chunk, const float* tau,
                               float* dtau, float* dstep) {
  const bool straight = job.sharpness == 0;
  if (job.codes)
    straight ? backward_tiles<true, Bfloat16>(job, chunk, tau, dtau, dstep)
             : backward_tiles<false, Bfloat16>(job, chunk, tau, dtau, dstep);
  else
    straight ? backward_tiles<true, float>(job, chunk, tau, dtau, dstep)
             : backward_tiles<false, float>(job, chunk, tau, dtau, dstep);
}

}  // namespace

void plan_fake_quantize(FakeQuantize& job, int64_t elements, int64_t inner) {
  job.elements = elements;
  // Channels side by side are one span with tau repeating; else a span is a plane with one tau.
  const bool side_by_side = job.tau && inner == 1;
  job.period = side_by_side ? job.channels : 1;
  const int64_t spans = side_by_side ? 1
                        : job.tau    ? elements / std::max<int64_t>(inner, 1)
                                     : job.steps;
  job.span = spans ? elements / spans : 0;
  // Whole vectors: a multiple of 16 as well as of the period, unless that is very long.
  const int64_t whole = std::lcm(job.period, int64_t{64});
  job.tile = whole <= kLongestTile ? whole : job.period;
  job.chunk = job.tile * std::max<int64_t>(1, kChunk / job.tile);
  job.chunks_a_span = (job.span + job.chunk - 1) / job.chunk;
  job.chunks = spans * job.chunks_a_span;
}

void fake_quantize(const FakeQuantize& job, int64_t first, int64_t last) {
  std::vector<float> tau(job.tile);
  for (int64_t number = first; number < last; ++number) {
    const Chunk chunk = chunk_of(job, number);
    if (number == first || job.period == 1) fill_tile(job, chunk.span, tau.data());
    forward_chunk(job, chunk, tau.data());
  }
}

void fake_quantize_backward(const FakeQuantize& job, int64_t first, int64_t last) {
  std::vector<float> tile(3 * job.tile);
  float *tau = tile.data(), *dtau = tau + job.tile, *dstep = dtau + job.tile;
  for (int64_t number = first; number < last; ++number) {
    const Chunk chunk = chunk_of(job, number);
    if (number == first || job.period == 1) fill_tile(job, chunk.span, tau);
    std::fill(dtau, dtau + 2 * job.tile, 0.0f);
    backward_chunk(job, chunk, tau, dtau, dstep);
    double sum = 0;
    for (int64_t j = 0; j < job.tile; ++j) sum += dstep[j];
    job.step_sums[number] = sum;
    double* sums = job.tau_sums + number * job.period;
    std::fill(sums, sums + job.period, 0.0);
    for (int64_t j = 0; j < job.tile; ++j) sums[j % job.period] += dtau[j];
  }
}

void sum_chunks(const FakeQuantize& job, float* dstep, float* dtau) {
  std::vector<double> steps(job.steps), taus(job.channels);
  for (int64_t number = 0; number < job.chunks; ++number) {
    const int64_t span = number / job.chunks_a_span;
    steps[job.steps == 1 ? 0 : span] += job.step_sums[number];
    const int64_t channel = job.period == 1 ? span % job.channels : 0;
    for (int64_t p = 0; p < job.period; ++p)
      taus[channel + p] += job.tau_sums[number * job.period + p];
  }
  // LSQ's 1 / sqrt(n qmax), n = elements that share a step.
  const double shared = std::max<int64_t>(1, job.elements / job.steps);
  for (int64_t s = 0; s < job.steps; ++s) dstep[s] = steps[s] / std::sqrt(shared * job.qmax);
  if (dtau) std::copy(taus.begin(), taus.end(), dtau);
}

}  // namespace qsr
