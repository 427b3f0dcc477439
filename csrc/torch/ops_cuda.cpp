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

// Raises unless `kernel` is "auto" or one of `able`, best first; returns which runs.
std::string chosen(const std::string& kernel, const std::string& op,
                   const std::vector<std::string>& able) {
  std::string names;
  for (const std::string& name : able) {
    if (kernel == name || kernel == "auto") return name;
    names += (names.empty() ? "" : ", ") + name;
  }
  const std::string* none = nullptr;
  return qsr::chosen(none, kernel, op, names);
}

// The elements of a contiguous tensor on the GPU of `like`: `count` or more, of type T.
template <class T>
T* elements(const Tensor& t, const Tensor& like, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == like.get_device_index() &&
                      t.is_contiguous() && t.scalar_type() == qsr::kTypeOf<T> && t.numel() >= count,
                  name, " must be contiguous, of the right type, on the same GPU, with ", count,
                  " elements or more");
  void* data = t.mutable_data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0, name, " must begin at 16 bytes");
  return static_cast<T*>(data);
}

const float* floats(const Tensor& t, const Tensor& like, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.numel() == count, name, " must be of ", count, " elements");
  return elements<float>(t, like, count, name);
}

bool has_imma(const Tensor& t) {  // integer tensor cores, as imma.cu uses them
  int major = 0, minor = 0;
  const int device = t.get_device_index();
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor >= 75;
}

void check_imma(const Tensor& t) {
  STD_TORCH_CHECK(has_imma(t), "this GPU has no integer tensor cores; they come with 7.5");
}

void conv2d_imma(const qsr::Conv2d& job, const Tensor& a) {
  const int64_t groups = (job.out_channels + qsr::kOutputs - 1) / qsr::kOutputs;
  Tensor laid_out =
      torch::stable::new_empty(a, {groups * job.words * qsr::kWeightWords}, ScalarType::Int);
  auto* weights = static_cast<uint32_t*>(laid_out.mutable_data_ptr());
  check(qsr::imma_weights_cuda(
      {job.w, nullptr, job.out_channels, job.words, job.w_bits, job.w_signed, weights},
      stream_of(a)));
  qsr::ImmaConv layer{};
  layer.planes = job.a, layer.in_bits = job.a_bits, layer.in_signed = job.a_signed;
  layer.weights = weights;
  layer.n = job.n, layer.height = job.height, layer.width = job.width, layer.chunks = job.words;
  layer.out_channels = groups * qsr::kOutputs;
  layer.finish.sums = job.out, layer.finish.sum_channels = job.out_channels;
  check(qsr::imma_cuda(layer, stream_of(a)));
}

Tensor conv2d(const Tensor& a, const Tensor& w, bool a_signed, bool w_signed,
              std::vector<int64_t> stride, std::vector<int64_t> padding, qsr::Name kernel) {
  STD_TORCH_CHECK(a.is_cuda() && w.is_cuda() && a.get_device_index() == w.get_device_index(),
                  "a and w must be on one GPU");
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out;
  const qsr::Conv2d job = qsr::conv2d_job(a, w, a_signed, w_signed, stride, padding, out);
  std::vector<std::string> able = {"cuda"};
  if (qsr::imma_takes(job) && has_imma(a)) able = {"cuda-imma", "cuda"};
  const std::string row = chosen(kernel, "such a convolution", able);
  if (out.numel() == 0) return out;
  if (row == "cuda-imma") {
    conv2d_imma(job, a);
    return out;
  }
  const bool rows = job.height * job.width * job.kernel_h * job.kernel_w == 1 && job.pad_h == 0 &&
                    job.pad_w == 0 && job.groups == 1;
  check((rows ? qsr::linear_cuda : qsr::conv2d_cuda)(job, stream_of(a)));
  return out;
}

// steps: float32 [4] on the CPU, of q, k, probabilities and v, as bits and is_signed.
Tensor attention(const Tensor& qkv, const Tensor& steps, const Tensor& bias,
                 std::optional<Tensor> mask, int64_t heads, double query_scale,
                 std::vector<int64_t> bits, std::vector<int64_t> is_signed, qsr::Name kernel) {
  chosen(kernel, "attention", {"cuda"});
  STD_TORCH_CHECK(qkv.dim() == 3 && heads >= 1 && heads <= 4096 && qkv.size(1) >= 1 &&
                      qkv.size(2) >= 3 * heads &&
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

constexpr int64_t kProgramChannels = 64;  // maps have a multiple; MAP_CHANNELS of program.py

void check_channels(int64_t channels) {
  STD_TORCH_CHECK(channels > 0 && channels % kProgramChannels == 0 && channels <= 4096,
                  "channels must be a multiple of 64, at most 4096");
}

// [layers, C, 3, 3, C] weight codes -> [layers, bytes], as the tensor cores take them.
Tensor lay_out_imma(const Tensor& codes) {
  STD_TORCH_CHECK(codes.dim() == 5 && codes.size(1) == codes.size(4) && codes.size(2) == 3 &&
                      codes.size(3) == 3,
                  "codes must be [layers, C, 3, 3, C]");
  const int64_t count = codes.size(0), c = codes.size(1), chunks = c / qsr::kDepth;
  check_channels(c);
  check_imma(codes);
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  Tensor out = torch::stable::new_empty(codes, {count, 9 * c * c}, ScalarType::Byte);
  if (count == 0) return out;
  const int8_t* from = elements<int8_t>(codes, codes, codes.numel(), "codes");
  auto* to = static_cast<uint32_t*>(out.mutable_data_ptr());
  check(qsr::imma_weights_cuda({nullptr, from, count * c, chunks, 8, true, to}, stream_of(codes)));
  return out;
}

// A network's body by the steps of its plan (cuda/network.h). numbers, table and factors are on the
// CPU; the features stay in the workspace.
void run_imma(const Tensor& lr, const Tensor& mean, double range, const Tensor& head_weights,
              const Tensor& head_bias, const Tensor& weights, const Tensor& arrays,
              const Tensor& numbers, const Tensor& table, const Tensor& factors, Tensor workspace) {
  STD_TORCH_CHECK(lr.dim() == 3 && lr.size(0) == 3 && lr.size(1) < (1 << 24) &&
                      lr.size(2) < (1 << 24) && lr.numel() > 0,
                  "lr must be [3, H, W]");
  check_imma(lr);
  const auto on_gpu = [&](const Tensor& t, int64_t count, const char* name) {
    return elements<float>(t, lr, count, name);
  };
  qsr::ImmaNetwork net{};
  net.height = lr.size(1), net.width = lr.size(2), net.channels = head_bias.numel();
  const int64_t c = net.channels, count = numbers.numel() / 4;
  check_channels(c);
  net.lr = on_gpu(lr, lr.numel(), "lr"), net.mean = on_gpu(mean, 3, "mean");
  net.range = static_cast<float>(range);
  net.head_weights = on_gpu(head_weights, 27 * c, "head_weights");
  net.head_bias = on_gpu(head_bias, c, "head_bias");
  net.weights = elements<uint8_t>(weights, lr, count * 9 * c * c, "weights");
  net.arrays = on_gpu(arrays, count * 3 * c, "arrays");
  net.workspace = elements<uint8_t>(workspace, lr, 0, "workspace");
  net.numbers = qsr::elements<float>(numbers, "numbers");
  net.factors = qsr::elements<float>(factors, "factors");
  constexpr int64_t kColumns = sizeof(qsr::ImmaStep) / sizeof(int64_t);
  net.steps = reinterpret_cast<const qsr::ImmaStep*>(qsr::elements<int64_t>(table, "table"));
  net.layer_count = count, net.factor_count = factors.numel();
  net.step_count = table.numel() / kColumns, net.bytes = workspace.numel();
  qsr::product({net.height, net.width, c});
  STD_TORCH_CHECK(net.holds(), "the steps do not fit the tensors");
  const torch::stable::accelerator::DeviceGuard guard(lr.get_device_index());
  check(qsr::imma_network_cuda(net, stream_of(lr)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("lay_out_imma", TORCH_BOX(&lay_out_imma));
  m.impl("run_imma", TORCH_BOX(&run_imma));
}
