// Head and body of a packed QuantSR-C on a GPU: the steps of its plan (qsr/integer/residual.py) as a
// row of launches; without a word of CUDA (see core.h). Maps have no frames here. What a step does
// beside its sums are arguments of a launch; nothing is read back, so a CUDA graph can hold the whole.
#pragma once
#include "cuda/imma.h"

namespace qsr {

// A step: rows of a table of numbers. Offsets are bytes of the workspace, -1 for none.
struct ImmaStep {
  int64_t layer;   // which layer runs; -1: the head
  int64_t source;  // of its codes; of the head where its result comes
  int64_t relu;    // 0 or 1
  int64_t residual, shortcut;    // offset, and which factor
  int64_t first_skip, skips;     // factors of skipped blocks
  int64_t out, codes, reader;    // offsets, and the layer that reads the codes
};

struct ImmaNetwork {
  int64_t height, width, channels;  // of the maps; channels a multiple of 64
  const float* lr;                  // [3, height, width]
  const float* mean;                // [3]
  float range;
  const float* head_weights;  // [3, 3, 3, channels]
  const float* head_bias;
  const uint8_t* weights;  // [layers, 9 * channels^2], laid out
  const float* arrays;     // [layers, 3, channels]: scale, bias and tau
  uint8_t* workspace;

  // On the processor. numbers: [layers, 4], of the input of a layer step, lowest and highest code,
  // and whether it is signed.
  const float *numbers, *factors;
  const ImmaStep* steps;
  int64_t layer_count, factor_count, step_count, bytes;

  // Whether no step can leave what it was given.
  bool holds() const {
    const int64_t values = height * width * channels;
    const auto fits = [&](int64_t offset, int64_t size) {
      return offset == -1 || (offset >= 0 && offset % 16 == 0 && offset <= bytes - size);
    };
    for (const ImmaStep* s = steps; s < steps + step_count; ++s) {
      if (s->layer < -1 || s->layer >= layer_count || s->source < 0) return false;
      if (!fits(s->source, s->layer < 0 ? 4 * values : values)) return false;
      if (!fits(s->residual, 4 * values) || !fits(s->out, 4 * values) || !fits(s->codes, values))
        return false;
      if (s->residual != -1 && (s->shortcut < 0 || s->shortcut >= factor_count)) return false;
      if (s->codes != -1 && (s->reader < 0 || s->reader >= layer_count)) return false;
      if (s->skips < 0 || s->skips > kMostSkips || s->first_skip < 0 ||
          s->first_skip > factor_count - s->skips)
        return false;
    }
    return true;
  }
};

// The head: a 3x3 convolution of the normalised picture in float, summed in the order of
// qsr/integer/reference.py, and the way into the body.
struct ImmaHead {
  const float* lr;    // [3, height, width]
  const float* mean;  // [3]
  float range;
  const float* weights;  // [3, 3, 3, channels]
  const float* bias;
  int64_t height, width, channels;
  float* shallow;     // out: [height, width, channels]
  ImmaFinish finish;  // skips, out and codes of it
};

// Output `index` of [height, width, channels / 4]: four channels of a pixel.
QSR_EACH void head_output(const ImmaHead& job, int64_t index) {
  const int64_t fours = job.channels / 4, pixel = index / fours, c = 4 * (index % fours);
  const int64_t y = pixel / job.width, x = pixel % job.width, plane = job.height * job.width;
  Floats sum{};
  for (int tap = 0; tap < 9; ++tap) {
    const int64_t iy = y + tap / 3 - 1, ix = x + tap % 3 - 1;
    const bool inside = iy >= 0 && iy < job.height && ix >= 0 && ix < job.width;
    for (int k = 0; k < 3; ++k) {
      const float* lr = job.lr + k * plane + iy * job.width + ix;
      const float value = inside ? (*lr - job.mean[k]) * job.range : 0.0f;
      const Floats weights = load(job.weights + (3 * tap + k) * job.channels + c);
      for (int i = 0; i < 4; ++i) sum.of[i] += value * weights.of[i];
    }
  }
  const Floats bias = load(job.bias + c);
  for (int i = 0; i < 4; ++i) sum.of[i] += bias.of[i];
  store(job.shallow + 4 * index, sum);
  pass_on(job.finish, sum, c, 4 * index);
}

// Calls head(ImmaHead) or layer(ImmaConv) for each step.
template <class Head, class Layer>
void imma_network(const ImmaNetwork& net, const Head& head, const Layer& layer) {
  const int64_t c = net.channels;
  const auto floats = [&](int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<float*>(net.workspace + offset);
  };
  for (const ImmaStep* s = net.steps; s < net.steps + net.step_count; ++s) {
    ImmaFinish finish{};
    finish.relu = s->relu != 0, finish.residual = floats(s->residual), finish.out = floats(s->out);
    if (finish.residual) finish.shortcut = net.factors[s->shortcut];
    for (int64_t i = 0; i < s->skips; ++i)
      finish.skips[finish.skip_count++] = net.factors[s->first_skip + i];
    if (s->codes >= 0) {
      const float* of = net.numbers + 4 * s->reader;
      finish.codes = net.workspace + s->codes, finish.range = {of[0], of[1], of[2]};
      finish.tau = net.arrays + (3 * s->reader + 2) * c;
    }
    if (s->layer < 0) {
      head(ImmaHead{net.lr, net.mean, net.range, net.head_weights, net.head_bias, net.height,
                    net.width, c, floats(s->source), finish});
      continue;
    }
    finish.scale = net.arrays + 3 * s->layer * c, finish.bias = finish.scale + c;
    ImmaConv job{};
    job.codes = net.workspace + s->source, job.in_signed = net.numbers[4 * s->layer + 3] != 0.0f;
    job.weights = reinterpret_cast<const uint32_t*>(net.weights + s->layer * 9 * c * c);
    job.n = 1, job.height = net.height, job.width = net.width;
    job.chunks = c / kDepth, job.out_channels = c;
    job.finish = finish;
    layer(job);
  }
}

}  // namespace qsr
