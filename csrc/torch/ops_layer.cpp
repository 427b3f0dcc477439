// The operators of single packed layers from float to float, see ops.cpp: values become byte codes
// in the map that the best row of network/conv.h reads, and what it finishes are values again.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

#include "network/conv.h"
#include "network/maps.h"
#include "torch/checks.h"
#include "torch/threads.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// sizes: in, out, groups, kernel, stride, dilation and padding (height and width each), bits of
// codes and weights, and whether the codes are signed: what ConvShape has.
qsr::ConvShape shape_of(const std::vector<int64_t>& sizes) {
  STD_TORCH_CHECK(sizes.size() == 14, "a shape has 14 numbers");
  constexpr int64_t kMost = 1 << 16;
  for (size_t i = 0; i < 13; ++i)
    STD_TORCH_CHECK(sizes[i] >= (i == 9 || i == 10 ? 0 : 1) && sizes[i] <= kMost,
                    "the numbers of a shape must be 1 (paddings 0) to 2^16");
  STD_TORCH_CHECK(sizes[0] % sizes[2] == 0 && sizes[1] % sizes[2] == 0,
                  "groups must divide the channels");
  qsr::check_bits(sizes[11]);
  qsr::check_bits(sizes[12]);
  const qsr::ConvShape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],
                         sizes[7], sizes[8], sizes[9], sizes[10], static_cast<int>(sizes[11]),
                         static_cast<int>(sizes[12]), sizes[13] != 0};
  const int64_t largest = (int64_t{1} << (s.in_signed ? s.in_bits - 1 : s.in_bits))
                          << (s.weight_bits - 1);
  STD_TORCH_CHECK(qsr::product({s.in / s.groups, s.taps(), largest}) < (int64_t{1} << 31),
                  "the sums could leave int32");
  qsr::product({s.taps(), qsr::filled(s.in, 64), qsr::filled(s.out, 64), 128});  // laid out
  return s;
}

const qsr::ConvKernel& row_of(const std::string& kernel, const qsr::ConvShape& s) {
  return qsr::chosen(qsr::find_conv(kernel.c_str(), s), kernel, "such a layer",
                     qsr::conv_names(s));
}

std::string layer_rows(std::vector<int64_t> sizes) { return qsr::conv_names(shape_of(sizes)); }

// Weight codes int8 [out, kernel_h, kernel_w, in / groups] as the row reads them: bytes, with room
// to align them.
Tensor lay_out_layer(const Tensor& codes, std::vector<int64_t> sizes, qsr::Name kernel) {
  const qsr::ConvShape s = shape_of(sizes);
  const qsr::ConvKernel& row = row_of(kernel, s);
  const int8_t* from =
      qsr::exactly<int8_t>(codes, qsr::product({s.out, s.taps(), s.in / s.groups}), "codes");
  const int64_t bytes = row.laid_out_bytes(s);
  Tensor out = torch::stable::new_zeros(codes, {bytes + 64}, ScalarType::Byte);
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  row.lay_out(from, s, to + (-reinterpret_cast<intptr_t>(to) & 63));
  return out;
}

// A layer without its picture.
struct Layer {
  const qsr::ConvKernel& row;
  const qsr::MapsKernel& maps;
  qsr::Conv job;
  qsr::CodeStore codes;  // without its map

  // arrays: scale, bias and tau, [3, channels filled up to 16 of the larger side]; numbers: step,
  // lowest and highest code.
  Layer(const qsr::ConvKernel& row, const qsr::ConvShape& s, const Tensor& weights,
        const Tensor& arrays, const std::vector<double>& numbers)
      : row(row), maps(qsr::maps_beside(row)), job{}, codes{} {
    job.shape = s;
    const auto* laid =
        qsr::exactly<uint8_t>(weights, row.laid_out_bytes(s) + 64, "weights");
    job.weights = laid + (-reinterpret_cast<intptr_t>(laid) & 63);
    const int64_t longest = qsr::filled(std::max(s.in, s.out), qsr::kMapLanes);
    const float* array = qsr::exactly<float>(arrays, 3 * longest, "arrays");
    job.finish.scale = array, job.finish.bias = array + longest;
    STD_TORCH_CHECK(numbers.size() == 3 && numbers[1] >= -128 && numbers[1] <= numbers[2] &&
                        numbers[2] <= 255,
                    "numbers must be step, and lowest and highest code of a byte");
    codes.tau = array + 2 * longest, codes.step = static_cast<float>(numbers[0]);
    codes.low = static_cast<float>(numbers[1]), codes.high = static_cast<float>(numbers[2]);
  }

  int64_t in() const { return job.shape.in; }
  int64_t out() const { return job.shape.out; }
  int64_t strips(int64_t height) const { return (height + row.rows - 1) / row.rows; }
  double cost() const {  // of a pixel of the result
    return job.shape.taps() * (job.shape.in / job.shape.groups) / 8.0 * out();
  }

  // Multiplies rows of numbers, float32 [count, in] -> [count, out], a part of them after another:
  // its codes stay in the second-level cache. As pictures that are kWide pixels wide.
  void rows(const float* x, float* y, int64_t count) const {
    constexpr int64_t kWide = 48, kPart = 4 * kWide;
    qsr::parallel((count + kPart - 1) / kPart, kPart * cost(), [&](int64_t first, int64_t last) {
      const qsr::Bytes scratch(row.scratch_bytes(job.shape));
      const int64_t channels = qsr::filled(in(), qsr::kMapLanes);
      const qsr::Bytes bytes(kPart * channels);
      for (int64_t at = first * kPart, end; at < last * kPart && at < count; at = end) {
        const bool whole = count - at >= kWide;
        const int64_t width = whole ? kWide : count - at;
        const int64_t height = whole ? std::min((count - at) / kWide, kPart / kWide) : 1;
        end = at + height * width;
        picture(bytes, scratch, x + at * in(), y + at * out(), height, width);
      }
    });
  }

 private:
  void picture(const qsr::Bytes& bytes, const qsr::Bytes& scratch, const float* x, float* y,
               int64_t height, int64_t width) const {
    qsr::CodeStore store = codes;
    const int64_t channels = qsr::filled(in(), qsr::kMapLanes);
    store.map = {static_cast<uint8_t*>(bytes.data()), height, width, channels, channels, {}};
    maps.quantize({const_cast<float*>(x), width * in(), in(), in()}, store, 0, height);
    qsr::Conv conv = job;
    conv.in = store.map, conv.height = height, conv.width = width;
    conv.finish.out = {y, width * out(), out(), out()};
    row.run(conv, 0, strips(height), scratch.data());
  }
};

// float32 [M, in] -> [M, out].
Tensor packed_linear(const Tensor& x, const Tensor& weights, const Tensor& arrays,
                     std::vector<double> numbers, std::vector<int64_t> sizes, qsr::Name kernel) {
  const qsr::ConvShape s = shape_of(sizes);
  STD_TORCH_CHECK(s.taps() == 1 && s.groups == 1 && s.stride_h == 1 && s.stride_w == 1 &&
                      s.pad_h == 0 && s.pad_w == 0,
                  "rows are multiplied by a kernel of 1x1");
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == s.in, "x must be [M, in]");
  const Layer layer(row_of(kernel, s), s, weights, arrays, numbers);
  const int64_t count = x.size(0);
  const float* from = qsr::exactly<float>(x, qsr::product({count, s.in}), "x");
  qsr::product({count, s.out});
  Tensor y = torch::stable::new_empty(x, {count, s.out});
  layer.rows(from, static_cast<float*>(y.mutable_data_ptr()), count);
  return y;
}

// How many outputs a convolution has along one side.
int64_t outputs(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  STD_TORCH_CHECK(room >= 0, "the kernel must fit into the padded picture");
  return room / stride + 1;
}

// float32 [N, in, H, W], contiguous, or [N, H, W, in] if pixels is true -> the same of the outputs.
Tensor packed_conv2d(const Tensor& x, const Tensor& weights, const Tensor& arrays,
                     std::vector<double> numbers, std::vector<int64_t> sizes, bool pixels,
                     qsr::Name kernel) {
  const qsr::ConvShape s = shape_of(sizes);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(pixels ? 3 : 1) == s.in,
                  "x must be [N, in, H, W] or, by pixels, [N, H, W, in]");
  const Layer layer(row_of(kernel, s), s, weights, arrays, numbers);
  const int64_t n = x.size(0), h = x.size(pixels ? 1 : 2), w = x.size(pixels ? 2 : 3);
  STD_TORCH_CHECK(h < (1 << 24) && w < (1 << 24), "a picture is larger than 2^24");
  const int64_t height = outputs(h, s.kernel_h, s.stride_h, s.dilation_h, s.pad_h);
  const int64_t width = outputs(w, s.kernel_w, s.stride_w, s.dilation_w, s.pad_w);
  const float* from = qsr::exactly<float>(x, qsr::product({n, h, w, s.in}), "x");
  qsr::product({n, height, width, qsr::filled(s.out, qsr::kMapLanes)});
  const int64_t channels = qsr::filled(s.in, qsr::kMapLanes);
  qsr::product({n, qsr::whole_tiles(h) + 2 * s.pad_h, qsr::whole_tiles(w) + 2 * s.pad_w, channels});
  const std::vector<int64_t> size = pixels ? std::vector<int64_t>{n, height, width, s.out}
                                           : std::vector<int64_t>{n, s.out, height, width};
  Tensor y = torch::stable::new_empty(x, size);
  float* to = static_cast<float*>(y.mutable_data_ptr());
  if (pixels && s.taps() == 1 && s.groups == 1 && s.stride_h == 1 && s.stride_w == 1 &&
      s.pad_h == 0 && s.pad_w == 0) {
    layer.rows(from, to, n * h * w);
    return y;
  }
  const qsr::CodeMap one{nullptr, h, w, channels, channels,
                         qsr::Frame::around(h, w, s.pad_h, s.pad_w)};
  const int64_t each = one.bytes();
  Tensor codes = torch::stable::new_empty(x, {qsr::product({n, each})}, ScalarType::Byte);
  auto* bytes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  const auto map = [&](int64_t i) {
    qsr::CodeMap map = one;
    map.data = bytes + i * each;
    return map;
  };
  qsr::parallel(n * h, 2.0 * w * s.in, [&](int64_t first, int64_t last) {
    // Some rows at a time: of planes that are longer pieces, which the processor fetches ahead
    // (64 channels, 128x128: 0.21 ms, row by row 0.32).
    constexpr int64_t kBand = 8;
    for (int64_t row = first, end; row < last; row = end) {
      const int64_t i = row / h, at = row % h;
      end = row + std::min({kBand, h - at, last - row});
      qsr::CodeStore store = layer.codes;
      store.map = map(i);
      qsr::zero_frame(store.map, at, at + end - row);
      float* picture = const_cast<float*>(from) + i * h * w * s.in;
      if (pixels)
        layer.maps.quantize({picture, w * s.in, s.in, s.in}, store, at, at + end - row);
      else
        layer.maps.quantize_planes(picture, h * w, s.in, store, at, at + end - row);
    }
  });
  const int64_t strips = layer.strips(height);
  qsr::parallel(n * strips, layer.row.rows * width * layer.cost(), [&](int64_t first,
                                                                       int64_t last) {
    const qsr::Bytes scratch(layer.row.scratch_bytes(s));
    const int64_t row = width * s.out;
    // By planes a few strips at a time, which the second-level cache holds until they are turned.
    const int64_t part = pixels ? strips : std::max<int64_t>(1, 65536 / (layer.row.rows * row + 1));
    const qsr::Bytes turned(pixels ? 0 : part * layer.row.rows * row * sizeof(float));
    qsr::Conv job = layer.job;
    job.height = height, job.width = width;
    for (int64_t k = first, count; k < last; k += count) {
      const int64_t i = k / strips, at = k % strips, top = at * layer.row.rows;
      count = std::min({part, last - k, strips - at});
      job.in = map(i);
      float* picture = to + i * height * row;
      auto* by_pixels = static_cast<float*>(turned.data());
      job.finish.out = {pixels ? picture : by_pixels - top * row, row, s.out, s.out};
      layer.row.run(job, at, at + count, scratch.data());
      const int64_t bottom = std::min(top + count * layer.row.rows, height);
      if (!pixels)
        layer.maps.to_planes(by_pixels, s.out, (bottom - top) * width, picture + top * width,
                             height * width);
    }
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(qsr_native, m) {
  m.def("layer_rows(int[] sizes) -> str");
  m.def("lay_out_layer(Tensor codes, int[] sizes, str kernel) -> Tensor");
  m.def(
      "packed_linear(Tensor x, Tensor weights, Tensor arrays, float[] numbers, int[] sizes, "
      "str kernel) -> Tensor");
  m.def(
      "packed_conv2d(Tensor x, Tensor weights, Tensor arrays, float[] numbers, int[] sizes, "
      "bool pixels, str kernel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CPU, m) {
  m.impl("lay_out_layer", TORCH_BOX(&lay_out_layer));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_conv2d", TORCH_BOX(&packed_conv2d));
}

STABLE_TORCH_LIBRARY_IMPL(qsr_native, CompositeExplicitAutograd, m) {
  m.impl("layer_rows", TORCH_BOX(&layer_rows));
}
