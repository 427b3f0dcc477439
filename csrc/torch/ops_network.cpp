// The operators of whole networks, see ops.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

#include "network/residual_network.h"
#include "network/tail.h"
#include "torch/checks.h"
#include "torch/residual_job.h"
#include "torch/threads.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTailLanes = 16;  // outputs are filled up to a multiple; OUT_LANES of tail.py

// [layers, C, 3, 3, C] weight codes, C a multiple of 64 -> [layers, bytes], as the kernel wants
// them. numbers: [layers, 4], see residual_body; its last column says whether the input is signed.
Tensor lay_out_layers(const Tensor& codes, const Tensor& numbers, int64_t bits,
                      qsr::Name kernel) {
  qsr::check_layers(codes);
  qsr::check_bits(bits);
  const int64_t count = codes.size(0), c = codes.size(1);
  const qsr::ConvKernel& row = qsr::chosen_conv3x3(kernel, bits);
  const int64_t bytes = row.laid_out_bytes(qsr::shape_3x3(c, static_cast<int>(bits), false));
  const int8_t* from = qsr::elements<int8_t>(codes, "codes");
  const float* number = qsr::at_least<float>(numbers, count * 4, "numbers");
  Tensor out = torch::stable::new_zeros(codes, {count, bytes}, ScalarType::Byte);
  uint8_t* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < count; ++i)
    row.lay_out(from + i * 9 * c * c,
                qsr::shape_3x3(c, static_cast<int>(bits), number[i * 4 + 3] != 0.0f),
                to + i * bytes);
  return out;
}

void residual_body(const Tensor& lr, const Tensor& mean, double range, const Tensor& head_weights,
                   const Tensor& head_bias, const Tensor& weights, const Tensor& arrays,
                   const Tensor& numbers, const Tensor& shortcuts, std::vector<int64_t> kept,
                   int64_t bits, qsr::Name kernel, Tensor workspace, Tensor features) {
  qsr::check_maps(lr, features);
  qsr::check_bits(bits);
  const int64_t c = features.size(2);
  const qsr::ConvKernel& row = qsr::chosen_conv3x3(kernel, bits);
  const qsr::ResidualJob job(lr, mean, range, head_weights, head_bias, weights, arrays, numbers,
                             shortcuts, kept, bits, workspace, features,
                             row.laid_out_bytes(qsr::shape_3x3(c, static_cast<int>(bits), false)),
                             qsr::workspace_bytes(lr.size(1), lr.size(2), c), qsr::at_least<float>,
                             qsr::at_least<uint8_t>);
  if (lr.numel() == 0) return;
  qsr::run(job.net, row, qsr::parallel<std::function<void(int64_t, int64_t)>>);
}

void tail(const Tensor& features, const Tensor& inside, const Tensor& ring, const Tensor& biases,
          int64_t scale, qsr::Name kernel, Tensor sr) {
  STD_TORCH_CHECK(features.dim() == 3 && inside.dim() == 4 && scale >= 1 && scale <= 4,
                  "features must be [H, W, channels] and inside [8, 8, channels, outputs]");
  const auto& row =
      qsr::chosen(qsr::find_tail(kernel.c_str()), kernel, "a tail", qsr::available("tail", 0));
  qsr::Tail job{};
  job.height = features.size(0), job.width = features.size(1), job.channels = features.size(2);
  job.scale = scale, job.outputs = inside.size(3);
  STD_TORCH_CHECK(job.channels > 0 && job.channels % 16 == 0 && inside.size(2) == job.channels,
                  "channels must be a multiple of 16, those of the weights");
  STD_TORCH_CHECK(job.outputs % kTailLanes == 0 && job.outputs >= 3 * scale * scale &&
                      job.outputs <= 48,
                  "outputs must be 3 * scale^2, filled up to a multiple of 16");
  const int64_t c = job.channels, o = job.outputs;
  const int64_t pixels = qsr::product({job.height, job.width});
  job.features = qsr::at_least<float>(features, qsr::product({pixels, c}), "features");
  job.inside = qsr::at_least<float>(inside, qsr::product({64, c, o}), "inside");
  job.ring = qsr::at_least<float>(ring, qsr::product({16 * 25, c, o}), "ring");
  job.biases = qsr::at_least<float>(biases, 16 * o, "biases");
  job.sr = qsr::at_least<float>(sr, qsr::product({3 * scale * scale, pixels}), "sr");
  if (pixels == 0) return;
  qsr::run(row.run, job, (job.height + qsr::kTailRows - 1) / qsr::kTailRows,
           16.0 * job.width * c * o);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def("lay_out_layers(Tensor codes, Tensor numbers, int bits, str kernel) -> Tensor");
  m.def(
      "residual_body(Tensor lr, Tensor mean, float range, Tensor head_weights, Tensor head_bias, "
      "Tensor weights, Tensor arrays, Tensor numbers, Tensor shortcuts, int[] kept, int bits, "
      "str kernel, Tensor(a!) workspace, Tensor(b!) features) -> ()");
  m.def(
      "tail(Tensor features, Tensor inside, Tensor ring, Tensor biases, int scale, str kernel, "
      "Tensor(a!) sr) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("lay_out_layers", TORCH_BOX(&lay_out_layers));
  m.impl("residual_body", TORCH_BOX(&residual_body));
  m.impl("tail", TORCH_BOX(&tail));
}
