// The arguments of the operator `residual_body` as a job, on whatever device: the maps, weights and
// arrays lie where the kernels run, the numbers of layers and the shortcuts on the CPU.
#pragma once
#include <vector>

#include "network/residual_network.h"
#include "torch/checks.h"

namespace qsr {

constexpr int64_t kProgramChannels = 64;  // maps of programs have a multiple; MAP_CHANNELS of program.py

inline void check_channels(int64_t channels) {
  STD_TORCH_CHECK(channels > 0 && channels % kProgramChannels == 0 && channels <= 4096,
                  "channels must be a multiple of 64, at most 4096");
}

struct ResidualJob {
  ResidualNetwork net;
  std::vector<PackedLayer> layers;

  // bytes, space: of the laid out weights of a layer, and of the workspace.
  // floats, uint8s: (tensor, count, name) -> pointer to at least so many on the device.
  template <class Floats, class Bytes>
  ResidualJob(const torch::stable::Tensor& lr, const torch::stable::Tensor& mean, double range,
              const torch::stable::Tensor& head_weights, const torch::stable::Tensor& head_bias,
              const torch::stable::Tensor& weights, const torch::stable::Tensor& arrays,
              const torch::stable::Tensor& numbers, const torch::stable::Tensor& shortcuts,
              const std::vector<int64_t>& kept, int64_t bits,
              const torch::stable::Tensor& workspace, const torch::stable::Tensor& features,
              int64_t bytes, int64_t space, const Floats& floats, const Bytes& uint8s)
      : net{} {
    STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == bytes, "weights must be [layers, ",
                    bytes, "], laid out for this kernel");
    net.height = lr.size(1), net.width = lr.size(2), net.channels = features.size(2);
    net.bits = static_cast<int>(bits), net.range = static_cast<float>(range);
    net.blocks = static_cast<int64_t>(kept.size()), net.kept = kept.data();
    const int64_t c = net.channels, count = 2 * net.blocks + 1;
    net.lr = floats(lr, 3 * net.height * net.width, "lr");
    net.mean = floats(mean, 3, "mean");
    net.head_weights = floats(head_weights, 27 * c, "head_weights");
    net.head_bias = floats(head_bias, c, "head_bias");
    net.features = floats(features, net.height * net.width * c, "features");
    net.shortcuts = at_least<float>(shortcuts, net.blocks, "shortcuts");
    const uint8_t* laid = uint8s(weights, count * bytes, "weights");
    const float* array = floats(arrays, count * 3 * c, "arrays");
    const float* number = at_least<float>(numbers, count * 4, "numbers");
    for (int64_t i = 0; i < count; ++i) {
      const float *a = array + i * 3 * c, *n = number + i * 4;
      layers.push_back({laid + i * bytes, a, a + c, a + 2 * c, n[0], n[1], n[2], n[3] != 0.0f});
    }
    net.layers = layers.data();
    uint8_t* begin = uint8s(workspace, space + 64, "workspace");
    net.workspace = begin + (-reinterpret_cast<intptr_t>(begin) & 63);
  }
};

// What must hold before a size is read from them.
inline void check_maps(const torch::stable::Tensor& lr, const torch::stable::Tensor& features) {
  STD_TORCH_CHECK(lr.dim() == 3 && lr.size(0) == 3, "lr must be [3, H, W]");
  STD_TORCH_CHECK(
      features.dim() == 3 && features.size(0) == lr.size(1) && features.size(1) == lr.size(2),
      "features must be [H, W, channels]");
  STD_TORCH_CHECK(lr.size(1) < (1 << 24) && lr.size(2) < (1 << 24), "lr is larger than 2^24");
  product({lr.size(1), lr.size(2), features.size(2)});
  check_channels(features.size(2));
}

// [layers, C, 3, 3, C], C as in a map.
inline void check_layers(const torch::stable::Tensor& codes) {
  STD_TORCH_CHECK(codes.dim() == 5 && codes.size(1) == codes.size(4) && codes.size(2) == 3 &&
                      codes.size(3) == 3,
                  "codes must be [layers, C, 3, 3, C]");
  check_channels(codes.size(1));
}

}  // namespace qsr
