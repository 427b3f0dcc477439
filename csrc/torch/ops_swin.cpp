// The operator of attention in windows, see ops.cpp and swin.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "network/swin.h"
#include "torch/checks.h"
#include "torch/threads.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kNever = -1e30f;  // bias of a pair that is not there: its exp is 0

const qsr::SwinKernel& find(const std::string& kernel, int64_t bits) {
  const int most = static_cast<int>(bits);
  return qsr::chosen(qsr::find_swin(kernel.c_str(), most), kernel,
                     "Swin layers of " + std::to_string(bits) + " bits, two factors together",
                     qsr::swin_names(most));
}

Tensor attention(const Tensor& qkv, const Tensor& steps, const Tensor& bias,
                 std::optional<Tensor> mask, int64_t heads, double query_scale,
                 std::vector<int64_t> bits, std::vector<int64_t> is_signed, qsr::Name kernel) {
  STD_TORCH_CHECK(qkv.dim() == 3 && heads >= 1 && heads <= 4096 && qkv.size(1) >= 1 &&
                      qkv.size(2) >= 3 * heads && qkv.size(2) % (3 * heads) == 0,
                  "qkv must be [windows, T, 3 * features], and heads must divide the features");
  qsr::AttentionRows job{};
  qsr::WindowAttention& a = job.attention;
  job.windows = qkv.size(0), a.pixels = qkv.size(1), a.padded = qsr::filled(a.pixels, qsr::kRowLanes);
  a.heads = heads, a.width = qkv.size(2) / (3 * heads);
  STD_TORCH_CHECK(a.pixels <= 4096 && qkv.size(2) <= 3 * 4096, "at most 4096 pixels and features");
  a.query_scale = static_cast<float>(query_scale);
  job.qkv = qsr::elements<float>(qkv, "qkv");
  STD_TORCH_CHECK(bits.size() == 4 && is_signed.size() == 4,
                  "bits and signed must have four entries");
  qsr::CodeKind kinds[4];
  for (int i = 0; i < 4; ++i) {
    qsr::check_bits(bits[i]);
    kinds[i] = {bits[i], is_signed[i] != 0};
  }
  const int64_t most = qsr::quantise(a, qsr::exactly<float>(steps, 4, "steps"), kinds);
  if (mask.has_value()) {
    STD_TORCH_CHECK(mask->dim() >= 1 && mask->size(0) >= 1, "mask must not be empty");
    job.masks = mask->size(0);
    const int64_t entries = qsr::product({job.masks, a.pixels, a.pixels});
    job.mask = qsr::exactly<float>(*mask, entries, "mask");
  }
  qsr::product({job.windows, a.pixels, 3 * heads, a.width});
  const float* given = qsr::exactly<float>(bias, heads * a.pixels * a.pixels, "bias");
  std::vector<float> padded(heads * a.pixels * a.padded, kNever);
  for (int64_t i = 0; i < heads * a.pixels; ++i)
    std::memcpy(padded.data() + i * a.padded, given + i * a.pixels, a.pixels * sizeof(float));
  a.bias = padded.data();
  const qsr::SwinKernel& row = find(kernel, most);
  Tensor out = torch::stable::new_empty(qkv, {job.windows, a.pixels, heads * a.width});
  job.out = static_cast<float*>(out.mutable_data_ptr());
  qsr::run(row.attention, job, job.windows, 1.0 * a.pixels * a.padded * heads * (a.width + 8));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def(
      "attention(Tensor qkv, Tensor steps, Tensor bias, Tensor? mask, int heads, float "
      "query_scale, "
      "int[] bits, int[] is_signed, str kernel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
}
