// The job of fake_quantize.cpp: dense float32, seen as [outer, channels, inner] where tau has one
// value a channel, and as [steps, rest] where there is more than one step size (then without tau).
#pragma once
#include <cstdint>
#include <vector>

namespace qsr {

struct FakeQuantize {
  const float* x;
  const void* g;      // backward: dL/dy, float or bfloat16
  void* y;            // forward: the values, or in bfloat16 the codes; backward: dL/dx, float
  bool codes;         // y is codes in bfloat16, and so is g
  const float* step;  // [steps], any sign: taken as at least min_step
  const float* tau;   // [channels] or null
  int64_t steps, channels;
  float qmin, qmax, min_step;
  float sharpness, slope_scale;  // phi's k, and k / (2 tanh(k / 2))

  // Set by plan_fake_quantize: spans of `span` elements, in chunks, which are what threads share.
  int64_t elements, period, span, tile, chunk, chunks_a_span, chunks;
  double* step_sums;  // backward: [chunks]
  double* tau_sums;   // backward: [chunks, period]
};

void plan_fake_quantize(FakeQuantize& job, int64_t elements, int64_t inner);
void fake_quantize(const FakeQuantize&, int64_t first, int64_t last);  // chunks [first, last)
void fake_quantize_backward(const FakeQuantize&, int64_t first, int64_t last);
// The sums of all chunks: dstep [steps], dtau [channels] or null.
void sum_chunks(const FakeQuantize&, float* dstep, float* dtau);

}  // namespace qsr
