// The raw operators `qsr_native::*` of single layers. Like the other files of this folder it sees
// torch through its stable ABI: one binary for several torch versions.
//
// The public operators, `qsr::*`, are declared in qsr/integer/kernels.py, which checks its
// arguments with full messages and then calls these; the checks here are the net below, so that no
// call can read or write outside its tensors.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "torch/checks.h"
#include "torch/threads.h"

#define QSR_STRING(x) #x
#define QSR_QUOTE(x) QSR_STRING(x)
// The loader looks for this text in the compiled file, to notice a build of older sources.
extern "C" __attribute__((used)) const char qsr_source_hash[] =
    "qsr-source-hash:" QSR_QUOTE(QSR_SOURCE_HASH);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_words(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
  qsr::check_words(t, name);
}

// A convolution as an error names it.
std::string described(const qsr::Conv2d& job) {
  const auto codes = [](int bits, bool is_signed) {
    return std::to_string(bits) + (is_signed ? " signed bits" : " unsigned bits");
  };
  const auto pair = [](int64_t y, int64_t x) {
    return std::to_string(y) + "x" + std::to_string(x);
  };
  return "a convolution of " + codes(job.a_bits, job.a_signed) + " by weights of " +
         codes(job.w_bits, job.w_signed) + ", kernel " + pair(job.kernel_h, job.kernel_w) +
         ", stride " + pair(job.stride_h, job.stride_w) + ", padding " +
         pair(job.pad_h, job.pad_w) + ", groups " + std::to_string(job.groups);
}

Tensor conv2d(const Tensor& a, const Tensor& w, bool a_signed, bool w_signed,
              std::vector<int64_t> stride, std::vector<int64_t> padding, qsr::Name kernel) {
  check_words(a, "a");
  check_words(w, "w");
  Tensor out;
  const qsr::Conv2d job = qsr::conv2d_job(a, w, a_signed, w_signed, stride, padding, out);
  const auto& row = qsr::chosen(qsr::find_conv2d(kernel.c_str(), job), kernel, described(job),
                                qsr::conv2d_names(job));
  qsr::run(row.run, job, job.n * job.out_h,
           1.0 * job.out_w * job.out_channels * job.kernel_h * job.kernel_w * job.words * job.a_bits *
               job.w_bits);
  return out;
}

Tensor quantize_pack(const Tensor& x, double step_size, std::optional<Tensor> tau, int64_t bits,
                     bool is_signed, int64_t groups, qsr::Name kernel) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 4,
                  "x must be float32 [N, C, H, W] on the CPU");
  qsr::check_bits(bits);
  STD_TORCH_CHECK(groups >= 1 && x.size(1) >= 1 && x.size(1) % groups == 0,
                  "groups must divide the channels");
  qsr::QuantizePack job{};
  job.n = x.size(0), job.channels = x.size(1), job.height = x.size(2), job.width = x.size(3);
  job.stride_n = x.stride(0), job.stride_c = x.stride(1);
  job.stride_y = x.stride(2), job.stride_x = x.stride(3);
  job.groups = groups, job.words = qsr::words_for(job.channels / groups);
  job.bits = static_cast<int>(bits), job.is_signed = is_signed;
  job.step_size = static_cast<float>(step_size);
  if (tau.has_value()) job.tau = qsr::exactly<float>(*tau, job.channels, "tau");
  const auto& row = qsr::chosen(qsr::find_quantize_pack(kernel.c_str(), job), kernel,
                                "quantize_pack", qsr::available("quantize_pack", 0));
  qsr::product({job.n, job.height, job.width, groups, bits, job.words, qsr::kWordBits});
  Tensor out = torch::stable::new_empty(x, {job.n, job.height, job.width, groups, bits, job.words},
                                        ScalarType::Long);
  job.x = static_cast<const float*>(x.const_data_ptr());
  job.out = static_cast<qsr::Word*>(out.mutable_data_ptr());
  qsr::run(row.run, job, job.n * job.height, 8.0 * job.width * job.channels);
  return out;
}

Tensor pack_codes(const Tensor& codes, int64_t bits, int64_t groups) {
  STD_TORCH_CHECK(
      codes.is_cpu() && codes.is_contiguous() && codes.dim() == 4 && codes.element_size() == 1,
      "codes must be contiguous bytes [N, H, W, C] on the CPU");
  qsr::check_bits(bits);
  const int64_t channels = codes.size(3);
  STD_TORCH_CHECK(groups >= 1 && channels >= 1 && channels % groups == 0,
                  "groups must divide the channels");
  const int64_t words = qsr::words_for(channels / groups);
  const int64_t pixels = qsr::product({codes.size(0), codes.size(1), codes.size(2)});
  qsr::product({pixels, groups, bits, words, qsr::kWordBits});
  Tensor out = torch::stable::new_empty(
      codes, {codes.size(0), codes.size(1), codes.size(2), groups, bits, words}, ScalarType::Long);
  qsr::pack_codes(static_cast<const uint8_t*>(codes.const_data_ptr()),
                  static_cast<qsr::Word*>(out.mutable_data_ptr()), pixels, channels, groups,
                  static_cast<int>(bits));
  return out;
}

Tensor unpack_codes(const Tensor& words, bool is_signed, int64_t channels) {
  check_words(words, "words");
  const int64_t groups = words.size(3);
  STD_TORCH_CHECK(
      channels >= 1 && channels % groups == 0 && qsr::words_for(channels / groups) == words.size(5),
      "channels must fit the words");
  Tensor out =
      torch::stable::new_empty(words, {words.size(0), words.size(1), words.size(2), channels},
                               is_signed ? ScalarType::Char : ScalarType::Byte);
  qsr::unpack_codes(static_cast<const qsr::Word*>(words.const_data_ptr()),
                    static_cast<uint8_t*>(out.mutable_data_ptr()),
                    words.size(0) * words.size(1) * words.size(2), channels, groups,
                    static_cast<int>(words.size(4)), is_signed);
  return out;
}

Tensor conv2d_float(const Tensor& x, const Tensor& w, std::optional<Tensor> bias,
                    int64_t out_channels) {
  STD_TORCH_CHECK(x.dim() == 4 && w.dim() == 4, "x and w must have four dimensions");
  qsr::FloatConv2d job{};
  job.x = qsr::elements<float>(x, "x"), job.w = qsr::elements<float>(w, "w");
  job.kernel_h = w.size(0), job.kernel_w = w.size(1), job.channels = w.size(2);
  job.out_channels_padded = w.size(3), job.out_channels = out_channels;
  qsr::product({x.size(0), x.size(1), x.size(2), x.size(3)});
  qsr::product({w.size(0), w.size(1), w.size(2), w.size(3)});
  STD_TORCH_CHECK(job.kernel_h >= 1 && job.kernel_w >= 1, "w must have a tap or more");
  job.n = x.size(0), job.height = x.size(1) - job.kernel_h + 1;
  job.width = x.size(2) - job.kernel_w + 1;
  STD_TORCH_CHECK(x.size(3) == job.channels && job.height >= 0 && job.width >= 0,
                  "x must be padded and have the channels of w");
  STD_TORCH_CHECK(job.out_channels_padded % qsr::kFloatLanes == 0 && out_channels >= 1 &&
                      out_channels <= job.out_channels_padded,
                  "the last dimension of w must be out_channels, filled up to a multiple of 16");
  if (bias.has_value()) job.bias = qsr::exactly<float>(*bias, out_channels, "bias");
  qsr::product({job.n, job.height, job.width, out_channels});
  Tensor out = torch::stable::new_empty(x, {job.n, job.height, job.width, out_channels});
  job.out = static_cast<float*>(out.mutable_data_ptr());
  qsr::run(&qsr::conv2d_float, job, job.n * job.height,
           job.width / 8.0 * job.out_channels_padded * job.channels * job.kernel_h * job.kernel_w);
  return out;
}

std::string available(qsr::Name op, int64_t bits) {
  STD_TORCH_CHECK(bits >= 0 && bits <= 64, "bits must be 0 to 64");
  return qsr::available(op.c_str(), static_cast<int>(bits));
}
std::string compiler() { return __VERSION__; }
std::string peak_names() { return qsr::peak_names(); }
double peak(qsr::Name name, double seconds) {
  STD_TORCH_CHECK(seconds >= 0 && seconds <= 60, "seconds must be 0 to 60");
  return qsr::peak(name.c_str(), seconds);
}

}  // namespace

STABLE_TORCH_LIBRARY(qsr_native, m) {
  m.def(
      "conv2d(Tensor a, Tensor w, bool a_signed, bool w_signed, int[] stride, int[] padding, "
      "str kernel) -> Tensor");
  m.def(
      "quantize_pack(Tensor x, float step_size, Tensor? tau, int bits, bool signed, int groups, "
      "str kernel) -> Tensor");
  m.def("conv2d_float(Tensor x, Tensor w, Tensor? bias, int out_channels) -> Tensor");
  m.def("pack_codes(Tensor codes, int bits, int groups) -> Tensor");
  m.def("unpack_codes(Tensor words, bool signed, int channels) -> Tensor");
  m.def("available(str op, int bits=1) -> str");
  m.def("compiler() -> str");
  m.def("peak_names() -> str");
  m.def("peak(str name, float seconds) -> float");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d));
  m.impl("quantize_pack", TORCH_BOX(&quantize_pack));
  m.impl("conv2d_float", TORCH_BOX(&conv2d_float));
  m.impl("pack_codes", TORCH_BOX(&pack_codes));
  m.impl("unpack_codes", TORCH_BOX(&unpack_codes));
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CompositeExplicitAutograd, m) {
  m.impl("available", TORCH_BOX(&available));
  m.impl("compiler", TORCH_BOX(&compiler));
  m.impl("peak_names", TORCH_BOX(&peak_names));
  m.impl("peak", TORCH_BOX(&peak));
}
