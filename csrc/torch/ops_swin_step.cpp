// The raw operators with which Swin layers learn: attention inside windows, LayerNorm and
// GELU, forward and backward. Called by qsr/system/fused_swin.py; qsr/blocks.py says what they
// compute.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "torch/checks.h"
#include "torch/threads.h"
#include "train/swin_step.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kLog2e = 1.44269504f;
constexpr int64_t kMostChunks = 16;  // of windows: each has its own sum of bias gradients

const qsr::SwinStepKernel& find(const std::string& kernel) {
  return qsr::chosen(qsr::find_swin_step(kernel.c_str()), kernel, "Swin layers in training",
                     qsr::swin_step_names());
}

// Numbers of a contiguous tensor on the CPU, of as many elements as `count`; half: in bfloat16.
void* numbers(const Tensor& t, int64_t count, bool half, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.numel() == count &&
                      t.scalar_type() == (half ? ScalarType::BFloat16 : ScalarType::Float),
                  name, " must be contiguous, on the CPU, with ", count,
                  " elements, all of one type");
  return t.mutable_data_ptr();
}

bool is_half(const Tensor& t, const char* name) {
  const bool half = t.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(half || t.scalar_type() == ScalarType::Float, name,
                  " must be float32 or bfloat16");
  return half;
}

// Rows of the table of biases, [(2 window - 1)^2, heads], of each key and query.
std::vector<int64_t> table_rows(int64_t window) {
  std::vector<int64_t> rows(window * window * window * window);
  auto row = rows.begin();
  for (int64_t key_y = 0; key_y < window; ++key_y)
    for (int64_t key_x = 0; key_x < window; ++key_x)
      for (int64_t y = 0; y < window; ++y)
        for (int64_t x = 0; x < window; ++x)
          *row++ = (y - key_y + window - 1) * (2 * window - 1) + x - key_x + window - 1;
  return rows;
}

// The job, with the biases of all pairs of pixels in `bias`.
qsr::TrainAttention attention_job(const Tensor& qkv, const Tensor& table, int64_t heads,
                                  int64_t window, int64_t shift, bool half_products,
                                  std::vector<float>& bias) {
  STD_TORCH_CHECK(qkv.dim() == 4 && 1 <= heads && heads <= 4096 && qkv.size(3) >= 3 * heads &&
                      qkv.size(3) % (3 * heads) == 0 && qkv.size(3) <= 3 * 4096,
                  "qkv must be [N, H, W, 3 * features] of at most 4096 features, and heads must "
                  "divide the features");
  STD_TORCH_CHECK(
      1 <= window && window <= 64 && qkv.size(1) % window == 0 && qkv.size(2) % window == 0 &&
          0 <= shift && shift < window,
      "height and width must be multiples of window, at most 64, and shift less than it");
  qsr::TrainAttention job{};
  job.pictures = qkv.size(0), job.height = qkv.size(1), job.width = qkv.size(2);
  job.heads = heads, job.depth = qkv.size(3) / (3 * heads);
  job.window = window, job.shift = shift, job.pixels = window * window;
  job.padded = (job.pixels + qsr::kTokenGroup - 1) / qsr::kTokenGroup * qsr::kTokenGroup;
  job.half = is_half(qkv, "qkv"), job.half_products = half_products;
  job.qkv = numbers(qkv, qkv.numel(), job.half, "qkv");
  job.windows = job.pictures * (job.height / window) * (job.width / window);
  job.chunk = std::max<int64_t>(12, (job.windows + kMostChunks - 1) / kMostChunks);
  job.chunks = (job.windows + job.chunk - 1) / job.chunk;
  const int64_t rows = (2 * window - 1) * (2 * window - 1);
  const float* values = qsr::exactly<float>(table, rows * heads, "table");
  const std::vector<int64_t> pairs = table_rows(window);
  bias.assign(heads * job.pixels * job.padded, 0.0f);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t key = 0; key < job.pixels; ++key)
      for (int64_t query = 0; query < job.pixels; ++query)
        bias[(h * job.pixels + key) * job.padded + query] =
            values[pairs[key * job.pixels + query] * heads + h] * kLog2e;
  job.bias = bias.data();
  return job;
}

void run(void (*kernel)(const qsr::TrainAttention&, int64_t, int64_t),
         const qsr::TrainAttention& job) {
  qsr::run(kernel, job, job.chunks,
           job.chunk * job.heads * job.pixels * job.padded * (job.depth + 8));
}

std::tuple<Tensor, Tensor> window_attention(const Tensor& qkv, const Tensor& table, int64_t heads,
                                            int64_t window, int64_t shift, bool half_products,
                                            std::string kernel) {
  std::vector<float> bias;
  auto job = attention_job(qkv, table, heads, window, shift, half_products, bias);
  Tensor out =
      torch::stable::new_empty(qkv, {job.pictures, job.height, job.width, heads * job.depth});
  Tensor softmax =
      torch::stable::new_empty(qkv, {job.windows, heads, 2, job.padded}, ScalarType::Float);
  job.out = out.mutable_data_ptr();
  job.softmax = static_cast<float*>(softmax.mutable_data_ptr());
  run(find(kernel).attention, job);
  return {out, softmax};
}

std::tuple<Tensor, Tensor> window_attention_backward(const Tensor& g, const Tensor& qkv,
                                                     const Tensor& table, const Tensor& softmax,
                                                     int64_t heads, int64_t window, int64_t shift,
                                                     bool half_products, std::string kernel) {
  std::vector<float> bias;
  auto job = attention_job(qkv, table, heads, window, shift, half_products, bias);
  job.g = numbers(g, qkv.numel() / 3, job.half, "g");
  job.softmax = qsr::exactly<float>(softmax, job.windows * heads * 2 * job.padded, "softmax");
  Tensor dqkv = torch::stable::empty_like(qkv), dtable = torch::stable::empty_like(table);
  const int64_t square = job.pixels * job.padded;
  std::vector<float> dbias(std::max<int64_t>(job.chunks, 1) * heads * square);
  job.dqkv = dqkv.mutable_data_ptr(), job.dbias = dbias.data();
  run(find(kernel).attention_backward, job);
  const std::vector<int64_t> pairs = table_rows(window);
  std::vector<double> sums(dtable.numel());
  for (int64_t h = 0; h < heads; ++h) {
    float* sum = dbias.data() + h * square;  // of all chunks, in their order
    for (int64_t unit = h + heads; unit < job.chunks * heads; unit += heads)
      for (int64_t i = 0; i < square; ++i) sum[i] += dbias[unit * square + i];
    for (int64_t key = 0; key < job.pixels; ++key)
      for (int64_t query = 0; query < job.pixels; ++query)
        sums[pairs[key * job.pixels + query] * heads + h] += sum[key * job.padded + query];
  }
  std::copy(sums.begin(), sums.end(), static_cast<float*>(dtable.mutable_data_ptr()));
  return {dqkv, dtable};
}

qsr::TrainNorm norm_job(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, "x must have channels");
  qsr::TrainNorm job{};
  job.channels = x.size(x.dim() - 1), job.rows = x.numel() / job.channels;
  job.half = is_half(x, "x"), job.eps = static_cast<float>(eps);
  job.x = numbers(x, x.numel(), job.half, "x");
  job.weight = qsr::exactly<float>(weight, job.channels, "weight");
  job.bias = qsr::exactly<float>(bias, job.channels, "bias");
  job.padded = (job.channels + 15) / 16 * 16;
  job.chunk = std::max<int64_t>(64, (job.rows + kMostChunks - 1) / kMostChunks);
  job.chunks = (job.rows + job.chunk - 1) / job.chunk;
  return job;
}

std::tuple<Tensor, Tensor> layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                      double eps, std::string kernel) {
  auto job = norm_job(x, weight, bias, eps);
  Tensor y = torch::stable::empty_like(x);
  Tensor moments = torch::stable::new_empty(x, {job.rows, 2}, ScalarType::Float);
  job.y = y.mutable_data_ptr(), job.moments = static_cast<float*>(moments.mutable_data_ptr());
  qsr::run(find(kernel).norm, job, job.chunks, job.chunk * job.channels);
  return {y, moments};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& g, const Tensor& x,
                                                       const Tensor& weight, const Tensor& bias,
                                                       const Tensor& moments, std::string kernel) {
  auto job = norm_job(x, weight, bias, 0.0);
  job.g = numbers(g, x.numel(), job.half, "g");
  job.moments = qsr::exactly<float>(moments, 2 * job.rows, "moments");
  Tensor dx = torch::stable::empty_like(x), dweight = torch::stable::empty_like(weight);
  Tensor dbias = torch::stable::empty_like(bias);
  std::vector<float> sums(job.chunks * 2 * job.padded);
  job.dx = dx.mutable_data_ptr(), job.sums = sums.data();
  qsr::run(find(kernel).norm_backward, job, job.chunks, job.chunk * job.channels);
  std::vector<double> all(2 * job.padded);
  for (size_t i = 0; i < sums.size(); ++i) all[i % all.size()] += sums[i];
  std::copy_n(all.begin(), job.channels, static_cast<float*>(dweight.mutable_data_ptr()));
  std::copy_n(all.begin() + job.padded, job.channels,
              static_cast<float*>(dbias.mutable_data_ptr()));
  return {dx, dweight, dbias};
}

// job.y: what `kernel` writes.
Tensor run_gelu(void (*kernel)(const qsr::TrainGelu&, int64_t, int64_t), qsr::TrainGelu job,
                const Tensor& x) {
  job.count = x.numel(), job.half = is_half(x, "x");
  job.x = numbers(x, job.count, job.half, "x");
  job.chunk = 4096, job.chunks = (job.count + job.chunk - 1) / job.chunk;
  Tensor y = torch::stable::empty_like(x);
  job.y = y.mutable_data_ptr();
  qsr::run(kernel, job, job.chunks, job.chunk);
  return y;
}

Tensor gelu(const Tensor& x, std::string kernel) { return run_gelu(find(kernel).gelu, {}, x); }

Tensor gelu_backward(const Tensor& g, const Tensor& x, std::string kernel) {
  qsr::TrainGelu job{};
  job.g = numbers(g, x.numel(), is_half(x, "x"), "g");
  return run_gelu(find(kernel).gelu_backward, job, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def(
      "window_attention(Tensor qkv, Tensor table, int heads, int window, int shift, bool half, "
      "str kernel=\"auto\") -> (Tensor, Tensor)");
  m.def(
      "window_attention_backward(Tensor g, Tensor qkv, Tensor table, Tensor softmax, int heads, "
      "int window, int shift, bool half, str kernel=\"auto\") -> (Tensor, Tensor)");
  m.def(
      "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, str kernel=\"auto\") -> "
      "(Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor g, Tensor x, Tensor weight, Tensor bias, Tensor moments, "
      "str kernel=\"auto\") -> (Tensor, Tensor, Tensor)");
  m.def("gelu(Tensor x, str kernel=\"auto\") -> Tensor");
  m.def("gelu_backward(Tensor g, Tensor x, str kernel=\"auto\") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("window_attention", TORCH_BOX(&window_attention));
  m.impl("window_attention_backward", TORCH_BOX(&window_attention_backward));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("gelu", TORCH_BOX(&gelu));
  m.impl("gelu_backward", TORCH_BOX(&gelu_backward));
}
