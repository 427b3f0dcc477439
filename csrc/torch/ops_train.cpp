// The raw operators of training, `qsr_native::fake_quantize` and its backward. Called by
// qsr/system/fused.py; qsr/quantizer.py says what they compute.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "torch/checks.h"
#include "train/fake_quantize.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kMinStep = 1e-8f;  // MIN_STEP_SIZE of qsr/quantizer.py

bool channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t stride = 1;
  for (int dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != stride) return false;
    stride *= t.size(dim);
  }
  return true;
}

// x lies in memory without gaps, in order or channels last; then its channels lie side by side.
// `channel`: the dimension of tau.
qsr::FakeQuantize make_job(const Tensor& x, const Tensor& step, const std::optional<Tensor>& tau,
                           int64_t channel, double qmin, double qmax) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.scalar_type() == ScalarType::Float && (x.is_contiguous() || channels_last(x)),
      "x must be float32 on the CPU, contiguous or channels last");
  STD_TORCH_CHECK(-1024 <= qmin && qmin <= 0 && 0 < qmax && qmax <= 1024, "codes are small");
  qsr::FakeQuantize job{};
  job.x = static_cast<const float*>(x.const_data_ptr());
  job.step = qsr::elements<float>(step, "step");
  job.steps = step.numel(), job.channels = 1;
  STD_TORCH_CHECK(job.steps == 1 || (x.dim() > 0 && job.steps == x.size(0)),
                  "step must have one value, or one along dimension 0 of x");
  int64_t inner = 1;
  if (tau.has_value()) {
    job.tau = qsr::elements<float>(*tau, "tau");
    job.channels = tau->numel();
    if (job.channels == 1) channel = 0, inner = x.numel();
    STD_TORCH_CHECK(job.steps == 1 && 0 <= channel && channel < x.dim() &&
                        (job.channels == 1 || job.channels == x.size(channel)),
                    "tau must have one value for each channel of x, and step a single one");
    const bool last = !x.is_contiguous();
    STD_TORCH_CHECK(!last || channel == 1 || job.channels == 1, "x must be contiguous");
    for (int64_t dim = channel + 1; dim < x.dim() && !last && job.channels > 1; ++dim)
      inner *= x.size(dim);
  }
  if (x.numel() == 0) return job;  // nothing to plan; and steps or channels may be 0
  job.qmin = static_cast<float>(qmin), job.qmax = static_cast<float>(qmax);
  job.min_step = kMinStep;
  qsr::plan_fake_quantize(job, x.numel(), inner);
  return job;
}

void run(void (*kernel)(const qsr::FakeQuantize&, int64_t, int64_t), const qsr::FakeQuantize& job) {
  const int64_t grain = 1 + 32768 / (job.chunk + 1);  // below that a thread costs more than it does
  torch::stable::parallel_for(0, job.chunks, grain,
                              [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

// Whether t is on the CPU, float32 or bfloat16, with the sizes and strides of x.
bool alike(const Tensor& t, const Tensor& x) {
  const auto type = t.scalar_type();
  bool same = t.is_cpu() && (type == ScalarType::Float || type == ScalarType::BFloat16);
  same = same && t.dim() == x.dim();
  for (int64_t dim = 0; same && dim < x.dim(); ++dim)
    same = t.size(dim) == x.size(dim) && (t.size(dim) == 1 || t.stride(dim) == x.stride(dim));
  return same;
}

void fake_quantize(const Tensor& x, const Tensor& step, std::optional<Tensor> tau, int64_t channel,
                   double qmin, double qmax, Tensor y) {
  qsr::FakeQuantize job = make_job(x, step, tau, channel, qmin, qmax);
  if (x.numel() == 0) return;
  STD_TORCH_CHECK(alike(y, x), "y must be float32 or bfloat16 on the CPU, with x's strides");
  job.codes = y.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(!job.codes || (-256 <= qmin && qmax <= 256), "bfloat16 holds codes up to 256");
  job.y = y.mutable_data_ptr();
  run(&qsr::fake_quantize, job);
}

std::tuple<Tensor, Tensor, Tensor> fake_quantize_backward(const Tensor& g, const Tensor& x,
                                                          const Tensor& step,
                                                          std::optional<Tensor> tau,
                                                          int64_t channel, double qmin, double qmax,
                                                          double sharpness) {
  qsr::FakeQuantize job = make_job(x, step, tau, channel, qmin, qmax);
  STD_TORCH_CHECK(alike(g, x), "g must be float32 or bfloat16 on the CPU, with x's strides");
  job.codes = g.scalar_type() == ScalarType::BFloat16;
  job.g = g.const_data_ptr();
  STD_TORCH_CHECK(sharpness >= 0 && std::isfinite(sharpness), "sharpness must be 0 or more");
  job.sharpness = static_cast<float>(sharpness);
  job.slope_scale =
      sharpness == 0 ? 1.0f : static_cast<float>(sharpness / (2 * std::tanh(sharpness / 2)));
  std::vector<double> step_sums(job.chunks), tau_sums(job.chunks * job.period);
  job.step_sums = step_sums.data(), job.tau_sums = tau_sums.data();
  Tensor dx = torch::stable::empty_like(x), dstep = torch::stable::empty_like(step);
  Tensor dtau = torch::stable::empty_like(tau.has_value() ? *tau : step);
  job.y = dx.mutable_data_ptr();
  if (x.numel() == 0) {
    torch::stable::zero_(dstep), torch::stable::zero_(dtau);
    return {dx, dstep, dtau};
  }
  run(&qsr::fake_quantize_backward, job);
  qsr::sum_chunks(job, static_cast<float*>(dstep.mutable_data_ptr()),
                  tau.has_value() ? static_cast<float*>(dtau.mutable_data_ptr()) : nullptr);
  return {dx, dstep, dtau};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def(
      "fake_quantize(Tensor x, Tensor step, Tensor? tau, int channel, float qmin, float qmax, "
      "Tensor(a!) y) -> ()");
  m.def(
      "fake_quantize_backward(Tensor g, Tensor x, Tensor step, Tensor? tau, int channel, float "
      "qmin, "
      "float qmax, float sharpness) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
}
