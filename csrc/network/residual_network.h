// Head and body of QuantSR-C, planned: one call from a picture to the features that the tail
// enlarges.
#pragma once
#include <cstdint>
#include <functional>

#include "network/conv.h"

namespace qsr {

// One packed 3x3 layer. Arrays are [channels], filled up with zeros.
struct PackedLayer {
  const void* weights;  // laid out by the kernel
  const float *scale, *bias, *tau;
  float step, low, high;  // of its input: codes = clamp(round((x + tau) / step), low, high)
  bool is_signed;
};

struct ResidualNetwork {
  int64_t height, width, channels;  // of the feature maps; channels a multiple of 64
  int64_t blocks;
  int bits;  // of activations

  const float* lr;    // [3, height, width]
  const float* mean;  // [3]
  float range;
  const float* head_weights;  // [3, 3, 3, channels]
  const float* head_bias;

  const PackedLayer* layers;  // conv1 and conv2 of each block, then the convolution after the body
  const float* shortcuts;     // [blocks]
  const int64_t* kept;        // [blocks]: 0 leaves of a block only its shortcut

  uint8_t* workspace;  // workspace_bytes, aligned to 64 bytes
  float* features;     // out: [height, width, channels]
};

// Runs work(first, last) over parts of [0, count), each about `cost` operations a unit.
using Parallel = std::function<void(int64_t count, int64_t cost,
                                    const std::function<void(int64_t, int64_t)>& work)>;

int64_t workspace_bytes(int64_t height, int64_t width, int64_t channels);
void run(const ResidualNetwork&, const ConvKernel&, const Parallel&);

}  // namespace qsr
