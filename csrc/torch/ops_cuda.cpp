// The operators of ops.cpp on CUDA tensors: a library of its own, built where torch has CUDA. The
// kernels are in the .cu files; nvcc compiles this one too, for the types of the runtime.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "cuda/launch.h"
#include "torch/checks.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  const auto error = aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  STD_TORCH_CHECK(error == 0, "torch has no CUDA stream for this device");
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

void check_kernel(const std::string& kernel, const char* op) {
  const bool there = kernel == "cuda" || kernel == "auto";
  qsr::chosen(there ? &kernel : nullptr, kernel, op, "cuda");
}

const float* floats(const Tensor& t, const Tensor& like, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == like.get_device_index() &&
                      t.is_contiguous() && t.scalar_type() == ScalarType::Float &&
                      t.numel() == count,
                  name, " must be contiguous float32 on the same GPU, with ", count, " elements");
  return static_cast<const float*>(t.const_data_ptr());
}

Tensor conv2d(const Tensor& a, const Tensor& w, bool a_signed, bool w_signed,
              std::vector<int64_t> stride, std::vector<int64_t> padding, qsr::Name kernel) {
  check_kernel(kernel, "conv2d");
  STD_TORCH_CHECK(a.is_cuda() && w.is_cuda() && a.get_device_index() == w.get_device_index(),
                  "a and w must be on one GPU");
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out;
  const qsr::Conv2d job = qsr::conv2d_job(a, w, a_signed, w_signed, stride, padding, out);
  if (out.numel() == 0) return out;
  const bool rows = job.height * job.width * job.kernel_h * job.kernel_w == 1 && job.pad_h == 0 &&
                    job.pad_w == 0 && job.groups == 1;
  check((rows ? qsr::linear_cuda : qsr::conv2d_cuda)(job, stream_of(a)));
  return out;
}

// steps: float32 [4] on the CPU, of q, k, probabilities and v, as bits and is_signed.
Tensor attention(const Tensor& qkv, const Tensor& steps, const Tensor& bias,
                 std::optional<Tensor> mask, int64_t heads, double query_scale,
                 std::vector<int64_t> bits, std::vector<int64_t> is_signed, qsr::Name kernel) {
  check_kernel(kernel, "attention");
  STD_TORCH_CHECK(qkv.dim() == 3 && heads >= 1 && qkv.size(1) >= 1 && qkv.size(2) >= 3 * heads &&
                      qkv.size(2) % (3 * heads) == 0,
                  "qkv must be [windows, T, 3 * features], and heads must divide the features");
  STD_TORCH_CHECK(steps.is_cpu() && steps.is_contiguous() && steps.numel() == 4 &&
                      steps.scalar_type() == ScalarType::Float && bits.size() == 4 &&
                      is_signed.size() == 4,
                  "steps must be float32 [4] on the CPU, bits and signed have four entries");
  const torch::stable::accelerator::DeviceGuard guard(qkv.get_device_index());
  qsr::CudaAttention job{};
  job.windows = qkv.size(0), job.pixels = qkv.size(1), job.heads = heads;
  job.width = qkv.size(2) / (3 * heads);
  STD_TORCH_CHECK(job.pixels <= 4096 && qkv.size(2) <= 3 * 4096,
                  "at most 4096 pixels and features");
  job.query_scale = static_cast<float>(query_scale);
  const int64_t pairs = job.pixels * job.pixels;
  job.qkv = floats(qkv, qkv, qkv.numel(), "qkv");
  job.bias = floats(bias, qkv, heads * pairs, "bias");
  if (mask.has_value()) {
    job.masks = mask->size(0);
    STD_TORCH_CHECK(job.masks >= 1, "mask must not be empty");
    job.mask = floats(*mask, qkv, job.masks * pairs, "mask");
  }
  const float* step = static_cast<const float*>(steps.const_data_ptr());
  qsr::CodeRange* const ranges[4] = {&job.q, &job.k, &job.p, &job.v};
  for (int i = 0; i < 4; ++i) {
    qsr::check_bits(bits[i]);
    const int half = 1 << (bits[i] - 1);
    *ranges[i] = {step[i], is_signed[i] ? -static_cast<float>(half) : 0.0f,
                  static_cast<float>(is_signed[i] ? half - 1 : 2 * half - 1)};
  }
  Tensor out = torch::stable::new_empty(qkv, {job.windows, job.pixels, heads * job.width});
  if (out.numel() == 0) return out;
  Tensor codes = torch::stable::new_empty(qkv, {qkv.numel()}, ScalarType::Short);
  Tensor probabilities =
      torch::stable::new_empty(qkv, {job.windows * heads * pairs}, ScalarType::Short);
  job.codes = static_cast<int16_t*>(codes.mutable_data_ptr());
  job.probabilities = static_cast<int16_t*>(probabilities.mutable_data_ptr());
  job.out = static_cast<float*>(out.mutable_data_ptr());
  check(qsr::attention_cuda(job, stream_of(qkv)));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("attention", TORCH_BOX(&attention));
}
