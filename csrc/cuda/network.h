// Head and body of QuantSR-C on a GPU: what network/residual_network.cpp does on a processor, as a
// row of launches; without a word of CUDA (see core.h). Maps have no frames here, so the workspace
// holds
//
//     shallow  float   the head's result, which the last layer adds again
//     a        codes   of the stream: input of conv1
//     b        codes   between conv1 and conv2
//
// and the features are the stream, updated in place. Shortcuts and the numbers of a layer are
// arguments of a launch; nothing is read back, so a CUDA graph can hold the whole.
#pragma once
#include <vector>

#include "cuda/imma.h"
#include "network/residual_network.h"

namespace qsr {

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

inline int64_t imma_workspace_bytes(int64_t height, int64_t width, int64_t channels) {
  return 6 * height * width * channels;
}

// Calls head(ImmaHead) once, then layer(ImmaConv) for each layer that runs.
template <class Head, class Layer>
void imma_network(const ResidualNetwork& net, const Head& head, const Layer& layer) {
  const int64_t values = net.height * net.width * net.channels;
  float *const shallow = reinterpret_cast<float*>(net.workspace), *const deep = net.features;
  uint8_t *const a = net.workspace + 4 * values, *const b = a + values;

  std::vector<int64_t> kept;
  for (int64_t i = 0; i < net.blocks; ++i)
    if (net.kept[i]) kept.push_back(i);
  kept.push_back(net.blocks);  // the convolution after the body
  const auto skip = [&](ImmaFinish& f, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) f.skips[f.skip_count++] = net.shortcuts[i];
  };
  const auto codes_for = [&](ImmaFinish& f, int64_t next, uint8_t* to) {
    const PackedLayer& p = net.layers[next];
    f.codes = to, f.tau = p.tau, f.range = {p.step, p.low, p.high};
  };
  const auto run = [&](int64_t index, const uint8_t* in, const ImmaFinish& finish) {
    const PackedLayer& p = net.layers[index];
    ImmaConv job{};
    job.codes = in, job.in_signed = p.is_signed;
    job.weights = static_cast<const uint32_t*>(p.weights);
    job.n = 1, job.height = net.height, job.width = net.width;
    job.chunks = net.channels / kDepth, job.out_channels = net.channels;
    job.finish = finish, job.finish.scale = p.scale, job.finish.bias = p.bias;
    layer(job);
  };

  ImmaHead entry{net.lr,     net.mean,  net.range,    net.head_weights, net.head_bias,
                 net.height, net.width, net.channels, shallow,          {}};
  skip(entry.finish, 0, kept[0]);
  if (kept[0] > 0) entry.finish.out = deep;
  codes_for(entry.finish, 2 * kept[0], a);
  head(entry);
  const float* stream = kept[0] > 0 ? deep : shallow;
  for (size_t k = 0; k + 1 < kept.size(); ++k) {
    const int64_t block = kept[k], next = kept[k + 1];
    ImmaFinish middle{}, end{};
    middle.relu = true;
    codes_for(middle, 2 * block + 1, b);
    run(2 * block, a, middle);
    end.residual = stream, end.out = deep, end.shortcut = net.shortcuts[block];
    skip(end, block + 1, next);
    codes_for(end, 2 * next, a);
    run(2 * block + 1, b, end);
    stream = deep;
  }
  ImmaFinish last{};
  last.residual = shallow, last.out = deep, last.shortcut = 1.0f;
  run(2 * net.blocks, a, last);
}

}  // namespace qsr
