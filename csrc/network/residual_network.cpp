// Head and body of QuantSR-C as one plan. Four maps are all it needs, whatever the depth:
//
//     shallow  float   the head's result, which the last layer adds again
//     deep     float   the residual stream, updated in place; at the end the features
//     a        codes   of the stream: input of conv1
//     b        codes   between conv1 and conv2
//
// so a block reads and writes 64 * (4 + 4 + 1 + 1 + 1 + 1) bytes a pixel, and never makes a float
// copy of a quantised tensor. A block that the plan drops still multiplies the stream by its
// shortcut: these factors are part of the finish of the layer before it.
#include "network/residual_network.h"

#include <cstring>
#include <vector>

#include "cpu.h"
#include "kernels.h"
#include "network/maps.h"

namespace qsr {
namespace {

#include "network/finish.h"

constexpr int64_t kReach = 1;  // of the head, a 3x3 convolution

struct Maps {
  float *picture, *shallow;  // picture: normalised, [height + 2, width + 2, 3], framed by zeros
  CodeMap a, b;
  int64_t bytes;

  Maps(uint8_t* base, int64_t height, int64_t width, int64_t channels) : bytes(0) {
    const auto take = [&](int64_t size) {
      uint8_t* at = base + bytes;
      bytes += (size + 63) & ~int64_t{63};
      return at;
    };
    picture = reinterpret_cast<float*>(take((height + 2) * (width + 2) * 3 * sizeof(float)));
    shallow = reinterpret_cast<float*>(take(height * width * channels * sizeof(float)));
    a = b = {nullptr, height, width, channels, channels, Frame::around(height, width, 1, 1)};
    a.data = take(a.bytes()), b.data = take(b.bytes());
  }
};

// Rows [first, last) of the framed picture: (lr - mean) * range, channels last.
void normalize(const ResidualNetwork& net, float* picture, int64_t first, int64_t last) {
  const int64_t framed = net.width + 2 * kReach, plane = net.height * net.width;
  for (int64_t y = first; y < last; ++y) {
    float* row = picture + y * framed * 3;
    std::memset(row, 0, framed * 3 * sizeof(float));
    if (y < kReach || y >= net.height + kReach) continue;
    const float* lr = net.lr + (y - kReach) * net.width;
    for (int64_t x = 0; x < net.width; ++x)
      for (int64_t c = 0; c < 3; ++c)
        row[(x + kReach) * 3 + c] = (lr[c * plane + x] - net.mean[c]) * net.range;
  }
}

// Rows [first, last) of the way into the body: the stream and the codes of its first layer.
QSR_CLONES void enter(const Finish& f, const FloatMap& shallow, int64_t first, int64_t last) {
  constexpr int kLanes = 16;
  const int64_t channels = shallow.channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    typedef Chain<kLanes, Op::kFactors> Factors;
    const Finisher<kLanes, Factors, 1> finish(f, c, 1.0f, Factors(f.operations, c));
    const Lanes<kLanes, false> from(shallow, c);
    for (int64_t y = first; y < last; ++y)
      for (int64_t x = 0; x < shallow.row / channels; ++x) finish.finish(from.load({y, x, 0}), {y, x, 0});
  }
}

// The part of a finish that makes the codes of `next`.
void codes_for(Finish& f, const PackedLayer& next, const CodeMap& to) {
  f.codes[f.code_count++] = {to, next.tau, next.step, next.low, next.high};
}

}  // namespace

int64_t workspace_bytes(int64_t height, int64_t width, int64_t channels) {
  return Maps(nullptr, height, width, channels).bytes;
}

void run(const ResidualNetwork& net, const ConvKernel& kernel, const Parallel& parallel) {
  const Maps maps(net.workspace, net.height, net.width, net.channels);
  const auto map_of = [&](float* data) {
    return FloatMap{data, net.width * net.channels, net.channels, net.channels};
  };
  const FloatMap shallow = map_of(maps.shallow), deep = map_of(net.features);
  zero_frame(maps.a, 0, net.height), zero_frame(maps.b, 0, net.height);

  std::vector<int64_t> kept;
  for (int64_t i = 0; i < net.blocks; ++i)
    if (net.kept[i]) kept.push_back(i);
  kept.push_back(net.blocks);  // the convolution after the body
  // The shortcuts between block `from` and the next that runs.
  const auto skip = [&](Finish& f, int64_t from, int64_t to) {
    if (to > from)
      f.operations[f.operation_count++] = {Op::kFactors, 0, net.shortcuts + from, to - from, {}};
  };

  parallel(net.height + 2 * kReach, net.width * 6,
           [&](int64_t first, int64_t last) { normalize(net, maps.picture, first, last); });
  FloatConv2d head{};
  head.x = maps.picture, head.w = net.head_weights, head.bias = net.head_bias,
  head.out = maps.shallow;
  head.n = 1, head.height = net.height, head.width = net.width, head.channels = 3;
  head.kernel_h = head.kernel_w = 3, head.out_channels = head.out_channels_padded = net.channels;
  Finish entry{};
  entry.scale = entry.bias = net.head_bias;  // not used: there are no sums
  entry.operations[0] = {Op::kFactors, 0, net.shortcuts, kept[0], {}};
  if (kept[0] > 0) entry.out = deep;
  codes_for(entry, net.layers[2 * kept[0]], maps.a);
  parallel(net.height, net.width * net.channels * 32, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y) {  // a row at a time, while it is in the cache
      conv2d_float(head, y, y + 1);
      enter(entry, shallow, y, y + 1);
    }
  });

  const auto layer = [&](int64_t index, const CodeMap& in, const Finish& finish) {
    const PackedLayer& of = net.layers[index];
    Conv job{shape_3x3(net.channels, net.bits, of.is_signed), in, net.height, net.width, of.weights,
             finish};
    job.finish.scale = of.scale, job.finish.bias = of.bias;
    parallel((net.height + kernel.rows - 1) / kernel.rows,
             kernel.rows * net.width * net.channels * net.channels / 8,
             [&](int64_t first, int64_t last) { run_strips(kernel, job, first, last); });
  };
  FloatMap stream = kept[0] > 0 ? deep : shallow;
  for (size_t k = 0; k + 1 < kept.size(); ++k) {
    const int64_t block = kept[k], next = kept[k + 1];
    Finish middle{};
    middle.operations[middle.operation_count++].op = Op::kRelu;
    codes_for(middle, net.layers[2 * block + 1], maps.b);
    layer(2 * block, maps.a, middle);
    Finish end{};
    end.operations[end.operation_count++] = {Op::kAdd, net.shortcuts[block], nullptr, 0, stream};
    end.out = deep;
    skip(end, block + 1, next);
    codes_for(end, net.layers[2 * next], maps.a);
    layer(2 * block + 1, maps.b, end);
    stream = deep;
  }
  Finish last{};
  last.operations[last.operation_count++] = {Op::kAdd, 1.0f, nullptr, 0, shallow};
  last.out = deep;
  layer(2 * net.blocks, maps.a, last);
}

}  // namespace qsr
