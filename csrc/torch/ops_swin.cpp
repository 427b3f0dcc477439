// The operators of Swin layers, see ops.cpp and swin.h.
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
#include "network/maps.h"
#include "torch/checks.h"
#include "torch/threads.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float kNever = -1e30f;  // bias of a pair that is not there: its exp is 0

int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

const qsr::SwinKernel& find(const std::string& kernel, int64_t bits) {
  STD_TORCH_CHECK(bits >= 0 && bits <= 32, "bits of two factors together must be 0 to 32");
  const int most = static_cast<int>(bits);
  return qsr::chosen(qsr::find_swin(kernel.c_str(), most), kernel,
                     "Swin layers of " + std::to_string(bits) + " bits, two factors together",
                     qsr::swin_names(most));
}

// Codes of `bits` bits, kept as u8 (left factor) or s8 (right factor).
qsr::ByteCodes byte_codes(float step, int64_t bits, bool is_signed, bool left) {
  qsr::check_bits(bits);
  const int64_t half = int64_t{1} << (bits - 1);
  const int64_t offset = left ? (is_signed ? half : 0) : (!is_signed && bits == 8 ? -128 : 0);
  return {step, static_cast<float>(is_signed ? -half : 0),
          static_cast<float>(is_signed ? half - 1 : 2 * half - 1), static_cast<int32_t>(offset)};
}

// steps, bits and signs of q, k, probabilities and v
void set_codes(qsr::WindowAttention& a, const float* steps, const std::vector<int64_t>& bits,
               const std::vector<int64_t>& is_signed) {
  STD_TORCH_CHECK(bits.size() == 4 && is_signed.size() == 4,
                  "bits and signed must have four entries");
  a.quantised = true;
  a.q = byte_codes(steps[0], bits[0], is_signed[0], true);
  a.k = byte_codes(steps[1], bits[1], is_signed[1], false);
  a.p = byte_codes(steps[2], bits[2], is_signed[2], true);
  a.v = byte_codes(steps[3], bits[3], is_signed[3], false);
  a.qk_scale = steps[0] * steps[1], a.pv_scale = steps[2] * steps[3];
}

// Bits of two factors together, the most of (left, right, left, right, ...).
int64_t together(const std::vector<int64_t>& bits, const std::vector<int64_t>& is_signed) {
  int64_t most = 0;
  for (size_t i = 0; i < bits.size(); i += 2) {
    const int64_t right = bits[i + 1] + (is_signed[i + 1] || bits[i + 1] == 8 ? 0 : 1);
    most = bits[i] + right > most ? bits[i] + right : most;
  }
  return most;
}

Tensor attention(const Tensor& qkv, const Tensor& steps, const Tensor& bias,
                 std::optional<Tensor> mask, int64_t heads, double query_scale,
                 std::vector<int64_t> bits, std::vector<int64_t> is_signed, qsr::Name kernel) {
  STD_TORCH_CHECK(qkv.dim() == 3 && heads >= 1 && heads <= 4096 && qkv.size(1) >= 1 &&
                      qkv.size(2) >= 3 * heads && qkv.size(2) % (3 * heads) == 0,
                  "qkv must be [windows, T, 3 * features], and heads must divide the features");
  qsr::AttentionRows job{};
  qsr::WindowAttention& a = job.attention;
  job.windows = qkv.size(0), a.pixels = qkv.size(1), a.padded = up(a.pixels, 16);
  a.heads = heads, a.width = qkv.size(2) / (3 * heads);
  STD_TORCH_CHECK(a.pixels <= 4096 && qkv.size(2) <= 3 * 4096, "at most 4096 pixels and features");
  a.query_scale = static_cast<float>(query_scale);
  job.qkv = qsr::elements<float>(qkv, "qkv");
  set_codes(a, qsr::exactly<float>(steps, 4, "steps"), bits, is_signed);
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
  const qsr::SwinKernel& row = find(kernel, together(bits, is_signed));
  Tensor out = torch::stable::new_empty(qkv, {job.windows, a.pixels, heads * a.width});
  job.out = static_cast<float*>(out.mutable_data_ptr());
  qsr::run(row.attention, job, job.windows, 1.0 * a.pixels * a.padded * heads * (a.width + 8));
  return out;
}

// Arrays one after the other in a tensor.
template <class T>
struct Reader {
  const T *at, *end;
  const T* take(int64_t count) {
    STD_TORCH_CHECK(end - at >= count, "the arrays of a Swin layer are too short");
    const T* taken = at;
    at += count;
    return taken;
  }
};

// stream: [height, width, C]; shape: height, width, window, shift, features, hidden channels,
// heads; weights, starts, arrays, numbers: see _Layer in qsr/integer/program_swin.py, which lays
// them out. attention_bits, attention_signed: of q, k, probabilities and v; empty: products in
// float32.
void swin_layer(Tensor stream, std::vector<int64_t> shape, const Tensor& weights,
                const Tensor& starts, const Tensor& arrays, const Tensor& numbers,
                const Tensor& position_bias, std::vector<int64_t> attention_bits,
                std::vector<int64_t> attention_signed, int64_t bits, qsr::Name kernel) {
  STD_TORCH_CHECK(shape.size() == 7, "shape must have seven entries");
  qsr::SwinLayer job{};
  qsr::WindowAttention& a = job.attention;
  job.height = shape[0], job.width = shape[1], job.window = shape[2], job.shift = shape[3];
  job.features = shape[4], a.heads = shape[6];
  constexpr int64_t kMost = 1 << 24;
  STD_TORCH_CHECK(job.window >= 2 && job.window % 2 == 0 && job.window <= 64 && job.height >= 0 &&
                      job.height <= kMost && job.width <= kMost &&
                      job.width >= 0 && job.height % job.window == 0 &&
                      job.width % job.window == 0 && job.shift >= 0 && job.shift < job.window,
                  "height and width must be multiples of an even window, at most 2^24");
  STD_TORCH_CHECK(job.features >= 1 && job.features <= 4096 && shape[5] >= 1 && shape[5] <= 65536 &&
                      a.heads >= 1 && job.features % a.heads == 0,
                  "features must be 1 to 4096, a multiple of heads");
  const int64_t c = up(job.features, 64), triple = up(3 * job.features, 64),
                hidden = up(shape[5], 64);
  job.channels = c;
  job.stream = qsr::exactly<float>(stream, qsr::product({job.height, job.width, c}), "stream");
  Reader<int8_t> weight{qsr::exactly<int8_t>(weights, c * (triple + c + 2 * hidden), "weights"),
                        nullptr};
  weight.end = weight.at + weights.numel();
  Reader<int32_t> start{qsr::exactly<int32_t>(starts, triple + hidden + 2 * c, "starts"), nullptr};
  start.end = start.at + starts.numel();
  Reader<float> array{qsr::elements<float>(arrays, "arrays"), nullptr};
  array.end = array.at + arrays.numel();
  const float* number = qsr::exactly<float>(numbers, 23, "numbers");
  for (qsr::Norm* norm : {&job.norm1, &job.norm2})
    norm->weight = array.take(c), norm->bias = array.take(c), norm->eps = *number++;
  const int64_t sizes[4][2] = {{c, triple}, {c, c}, {c, hidden}, {hidden, c}};
  qsr::ByteLinear* const layers[4] = {&job.qkv, &job.proj, &job.fc1, &job.fc2};
  for (int i = 0; i < 4; ++i, number += 4) {
    qsr::ByteLinear& layer = *layers[i];
    layer.in = sizes[i][0], layer.out = sizes[i][1];
    layer.weights = weight.take(layer.in * layer.out), layer.start = start.take(layer.out);
    layer.tau = array.take(layer.in), layer.scale = array.take(layer.out),
    layer.bias = array.take(layer.out);
    layer.codes = {number[0], number[1], number[2], static_cast<int32_t>(number[3])};
  }
  a.pixels = job.window * job.window, a.padded = up(a.pixels, 16);
  a.width = job.features / a.heads;
  a.query_scale = number[0];
  if (!attention_bits.empty()) set_codes(a, number + 1, attention_bits, attention_signed);
  a.bias =
      qsr::exactly<float>(position_bias, a.heads * a.pixels * a.padded, "position_bias");
  const int64_t both = together(attention_bits, attention_signed);
  const qsr::SwinKernel& row = find(kernel, both > bits ? both : bits);
  qsr::run(row.layer, job, job.height * job.width / a.pixels,
      a.pixels / 8.0 * c * (c + triple + 2 * hidden));
}

void swin_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
               int64_t features, qsr::Name kernel, Tensor out) {
  qsr::NormRows job{};
  job.channels = x.dim() ? x.size(x.dim() - 1) : 0, job.features = features;
  STD_TORCH_CHECK(
      job.channels > 0 && job.channels % 16 == 0 && features >= 1 && features <= job.channels,
      "x must have a multiple of 16 channels, `features` of them used");
  job.x = qsr::elements<float>(x, "x");
  job.out = qsr::exactly<float>(out, x.numel(), "out");
  job.norm = {qsr::exactly<float>(weight, job.channels, "weight"),
              qsr::exactly<float>(bias, job.channels, "bias"), static_cast<float>(eps)};
  qsr::run(find(kernel, 0).norm, job, x.numel() / job.channels, job.channels);
}

// stream = shortcut * residual + conv3x3(codes of stream); all [height, width, C]. weights: from
// lay_out_layer; array: scale, bias and tau [3, C]; number: step, low, high, whether signed.
void swin_conv(Tensor stream, const Tensor& residual, double shortcut, const Tensor& weights,
               const Tensor& array, const Tensor& number, int64_t bits, qsr::Name kernel,
               Tensor codes) {
  STD_TORCH_CHECK(
      stream.dim() == 3 && stream.size(2) % 64 == 0 && stream.size(2) > 0,
      "stream must be [height, width, C], C a multiple of 64");
  const qsr::ConvKernel& row = qsr::chosen_conv3x3(kernel, bits);
  const int64_t height = stream.size(0), width = stream.size(1), c = stream.size(2);
  STD_TORCH_CHECK(height < (1 << 24) && width < (1 << 24) && c <= 4096, "stream is too large");
  const float* a = qsr::exactly<float>(array, 3 * c, "array");
  const float* n = qsr::exactly<float>(number, 4, "number");
  qsr::CodeMap map{nullptr, height, width, c, c, qsr::Frame::around(height, width, 1, 1)};
  map.data = qsr::exactly<uint8_t>(codes, map.bytes(), "codes");
  const int64_t values = qsr::product({height, width, c});
  float* x = qsr::exactly<float>(stream, values, "stream");
  const auto map_of = [&](float* data) { return qsr::FloatMap{data, width * c, c, c}; };
  const qsr::CodeStore store{map, a + 2 * c, n[0], n[1], n[2]};
  qsr::parallel(height, 1.0 * width * c, [&](int64_t first, int64_t last) {
    qsr::zero_frame(map, first, last);
    qsr::maps_kernel().quantize(map_of(x), store, first, last);
  });
  qsr::Conv job{};
  job.shape = qsr::shape_3x3(c, static_cast<int>(bits), n[3] != 0.0f);
  job.in = map, job.height = height, job.width = width;
  job.weights = qsr::exactly<uint8_t>(weights, row.laid_out_bytes(job.shape), "weights");
  job.finish.scale = a, job.finish.bias = a + c;
  float* other = qsr::exactly<float>(residual, values, "residual");
  job.finish.operations[job.finish.operation_count++] = {
      qsr::Op::kAdd, static_cast<float>(shortcut), nullptr, 0, map_of(other)};
  job.finish.out = map_of(x);
  qsr::parallel((height + row.rows - 1) / row.rows, row.rows * width / 8.0 * c * c,
                [&](int64_t first, int64_t last) { qsr::run_strips(row, job, first, last); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def(
      "attention(Tensor qkv, Tensor steps, Tensor bias, Tensor? mask, int heads, float "
      "query_scale, "
      "int[] bits, int[] is_signed, str kernel) -> Tensor");
  m.def(
      "swin_layer(Tensor(a!) stream, int[] shape, Tensor weights, Tensor starts, Tensor arrays, "
      "Tensor numbers, Tensor position_bias, int[] attention_bits, int[] attention_signed, int "
      "bits, "
      "str kernel) -> ()");
  m.def(
      "swin_norm(Tensor x, Tensor weight, Tensor bias, float eps, int features, str kernel, "
      "Tensor(a!) out) -> ()");
  m.def(
      "swin_conv(Tensor(a!) stream, Tensor residual, float shortcut, Tensor weights, Tensor array, "
      "Tensor number, int bits, str kernel, Tensor(b!) codes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("swin_layer", TORCH_BOX(&swin_layer));
  m.impl("swin_norm", TORCH_BOX(&swin_norm));
  m.impl("swin_conv", TORCH_BOX(&swin_conv));
}
