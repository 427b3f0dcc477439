// The operators of whole networks, see ops.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "network/tail.h"
#include "torch/checks.h"
#include "torch/threads.h"

namespace {

using torch::stable::Tensor;

constexpr int64_t kTailLanes = 16;  // outputs are filled up to a multiple; OUT_LANES of tail.py

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
  // On GPUs, see ops_cuda.cpp:
  m.def("lay_out_imma(Tensor codes) -> Tensor");
  m.def(
      "run_imma(Tensor lr, Tensor mean, float range, Tensor head_weights, Tensor head_bias, "
      "Tensor weights, Tensor arrays, Tensor numbers, Tensor table, Tensor factors, "
      "Tensor(a!) workspace) -> ()");
  m.def(
      "tail(Tensor features, Tensor inside, Tensor ring, Tensor biases, int scale, str kernel, "
      "Tensor(a!) sr) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("tail", TORCH_BOX(&tail));
}
