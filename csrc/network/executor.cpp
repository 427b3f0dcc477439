// See executor.h.
#include "network/executor.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "cpu.h"
#include "format.h"
#include "network/maps.h"

namespace qsr {
namespace {

constexpr int64_t kMostPixels = 1 << 24, kMostChannels = 1 << 16, kMostWindow = 1 << 10;
constexpr int64_t kMostValues = 1 << 14, kMostSteps = 1 << 12;
constexpr int64_t kTogether = 4;  // rows of a convolution of floats, finished while they are cached

const float kZeros[kMostChannels + kMapLanes] = {};  // for steps without sums, which have no scale

void check(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string("the plan does not fit: ") + what);
}

// Where one of `count` numbers lies between two of n. The formulas of qsr/integer/reference.py.
struct Between {
  int64_t first, second;
  float weight;
  Between(int64_t i, int64_t n, int64_t count, bool aligned) {
    int64_t at = (2 * i + 1) * n - count, unit = 2 * count;
    if (aligned) at = i * (n - 1), unit = count > 1 ? count - 1 : 1;
    at = at < 0 ? 0 : at;
    first = at / unit;
    second = first + 1 < n ? first + 1 : n - 1;
    weight = static_cast<float>(at % unit) / static_cast<float>(unit);
  }
};

QSR_CLONES void mix(const float* a, const float* b, float weight, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] + weight * (b[i] - a[i]);
}

// The sum of n rows of `count` numbers, in the first of them: row i and i + h, where h is the largest
// power of two below n, until one is left.
QSR_CLONES void tree_sum(float* rows, int64_t n, int64_t count) {
  while (n > 1) {
    int64_t half = 1;
    while (2 * half < n) half *= 2;
    for (int64_t i = 0; i < (n - half) * count; ++i) rows[i] = rows[i] + rows[half * count + i];
    n = half;
  }
}

// Functions of single numbers, in the order of ELEMENTS of qsr/integer/reference.py.
const struct {
  const char* name;
  Op op;
} kElement[] = {{"sigmoid", Op::kSigmoid},
                {"gelu", Op::kGelu},
                {"silu", Op::kSilu},
                {"tanh", Op::kTanh}};
constexpr int64_t kElementCount = std::size(kElement);

template <class Code>
QSR_CLONES void pool_rows(const CodeMap& in, const CodeMap& to, const int64_t (&kernel)[2],
                          const int64_t (&stride)[2], const int64_t (&padding)[2], int64_t first,
                          int64_t last) {
  const int64_t channels = in.channels;
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = 0; x < to.width; ++x) {
      Code* most = reinterpret_cast<Code*>(to.at(y, x));
      bool begun = false;
      for (int64_t dy = 0; dy < kernel[0]; ++dy)
        for (int64_t dx = 0; dx < kernel[1]; ++dx) {
          const int64_t iy = y * stride[0] + dy - padding[0], ix = x * stride[1] + dx - padding[1];
          if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
          const Code* from = reinterpret_cast<const Code*>(in.at(iy, ix));
          for (int64_t c = 0; c < channels; ++c)
            most[c] = begun && most[c] > from[c] ? most[c] : from[c];
          begun = true;
        }
    }
}

void nearest_rows(const CodeMap& in, const CodeMap& to, int64_t factor, int64_t first,
                  int64_t last) {
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = 0; x < to.width; ++x)
      std::memcpy(to.at(y, x), in.at(y / factor, x / factor), static_cast<size_t>(in.channels));
}

// Which of n numbers stands at i, beyond the edges too.
int64_t edge(int64_t i, int64_t n, bool reflected) {
  if (reflected) return i < 0 ? -i : i < n ? i : 2 * (n - 1) - i;
  return i < 0 ? 0 : i < n ? i : n - 1;
}

void pad_rows(const CodeMap& in, const CodeMap& to, const int64_t (&padding)[2], bool reflected,
              int64_t first, int64_t last) {
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = 0; x < to.width; ++x)
      std::memcpy(to.at(y, x),
                  in.at(edge(y - padding[0], in.height, reflected),
                        edge(x - padding[1], in.width, reflected)),
                  static_cast<size_t>(in.channels));
}

// Rows [first, first + count) of a map with zeros beside it, one after another; those left and right
// are in `to` already.
void rows_with_zeros(const FloatMap& in, int64_t height, int64_t width, int64_t beside,
                     int64_t first, int64_t count, float* to) {
  const size_t row = static_cast<size_t>(width * in.channels) * sizeof(float);
  for (int64_t y = first; y < first + count; ++y, to += (width + 2 * beside) * in.channels) {
    float* const inside = to + beside * in.channels;
    if (y >= 0 && y < height)
      std::memcpy(inside, in.data + y * in.row, row);
    else
      std::memset(inside, 0, row);
  }
}

// Channel c of the result at (y, x) is channel c * factor^2 + (y % factor) * factor + x % factor. A
// factor that the compiler knows (0: it does not) takes a tenth of the time.
template <int64_t known>
QSR_CLONES void shuffle_rows(const CodeMap& in, const CodeMap& to, int64_t any, int64_t first,
                             int64_t last) {
  const int64_t factor = known ? known : any, channels = in.channels / (factor * factor);
  for (int64_t y = first; y < last; ++y)
    for (int64_t x = 0; x < to.width; ++x) {
      const uint8_t* from = in.at(y / factor, x / factor) + y % factor * factor + x % factor;
      uint8_t* __restrict at = to.at(y, x);
      for (int64_t c = 0; c < channels; ++c) at[c] = from[c * factor * factor];
    }
}

}  // namespace

Op element(const std::string& name) {
  for (const auto& known : kElement)
    if (name == known.name) return known.op;
  throw std::invalid_argument("there is no function " + name);
}

// Reads the tables from front to back.
class Executor::Reader {
 public:
  Reader(const Tables& tables, const std::string& kernel, const std::string& swin,
         std::vector<Value>& values)
      : tables_(tables), kernel_(kernel), swin_(swin), values_(values) {}

  int64_t next(int64_t least, int64_t most, const char* what) {
    check(at_ < tables_.numbers.count, "its numbers end too early");
    const int64_t number = tables_.numbers.data[at_++];
    check(number >= least && number <= most, what);
    return number;
  }

  bool done() const { return at_ == tables_.numbers.count; }

  void value() {
    Value v{};
    v.is_float = next(0, 1, "kind of a value") == 1;
    const int64_t home = next(0, 2, "home of a value");
    const int64_t place = next(0, int64_t{1} << 62, "place of a value");
    v.height = next(1, kMostPixels, "height of a value");
    v.width = next(1, kMostPixels, "width of a value");
    v.channels = next(1, kMostChannels, "channels of a value");
    const int64_t frame_y = next(0, kMostWindow, "frame"), frame_x = next(0, kMostWindow, "frame");
    v.bits = static_cast<int>(next(0, kMaxBits, "bits of a value"));
    v.is_signed = next(0, 1, "sign of a value") == 1;
    check(v.height * v.width <= int64_t{1} << 40, "pixels of a value");
    int64_t bytes = 4 * v.height * v.width * v.channels;
    if (!v.is_float) {
      check(v.channels % kMapLanes == 0 && v.bits >= 1, "channels or bits of codes");
      v.codes = {nullptr, v.height, v.width, v.channels, v.channels,
                 Frame::around(v.height, v.width, frame_y, frame_x)};
      bytes = v.codes.bytes();
    }
    if (home == 0) {
      check(place % 64 == 0 && bytes <= tables_.workspace.count - place, "place of a value");
      v.codes.data = tables_.workspace.data + place;
      v.floats.data = reinterpret_cast<float*>(v.codes.data);
    } else {
      const auto& rooms = home == 1 ? tables_.inputs : tables_.outputs;
      check(v.is_float && place < static_cast<int64_t>(rooms.size()), "place of a value");
      check(rooms[place].count * 4 == bytes, "size of an input or output");
      v.floats.data = rooms[place].data;
    }
    if (v.is_float)
      v.floats = {v.floats.data, v.width * v.channels, v.channels, v.channels};
    values_.push_back(v);
  }

  Step step() {
    Step s{};
    s.op = next(kConv, kPad, "operation of a step");
    s.source = &known("source of a step");
    const int64_t out = next(-1, count() - 1, "result of a step");
    s.height = next(1, kMostPixels, "height of a step");
    s.width = next(1, kMostPixels, "width of a step");
    s.channels = next(1, kMostChannels, "channels of a step");
    const bool reads_floats = s.op >= kFloat && s.op <= kAverage;
    check(s.source->is_float == reads_floats, "kind of a source");
    s.cost = 4.0 * s.width * s.channels;
    if (s.op == kConv) convolution(s);
    if (s.op == kPool) {
      pair(s.kernel, 1), pair(s.stride, 1), pair(s.padding, 0);
      windows(s, s.kernel, s.stride, s.padding);
      check(s.padding[0] < s.kernel[0] && s.padding[1] < s.kernel[1], "padding of a pool");
    }
    if (s.op == kNearest || s.op == kShuffle) {
      s.factor = next(1, kMostWindow, "factor of a step");
      check(s.height == s.source->height * s.factor && s.width == s.source->width * s.factor,
            "size of a step");
    }
    if (s.op == kFloatConv) float_convolution(s);
    if (s.op == kNorm) norm(s);
    if (s.op == kSwin) swin(s);
    if (s.op == kPad) pad(s);
    if (s.op != kConv) s.conv.finish.scale = s.conv.finish.bias = kZeros;
    if (reads_floats && s.op != kFloatConv) {
      check(s.source->channels == s.channels, "channels of a source");
      check(s.op > kSwin || alike(*s.source, s), "size of a source");
    }
    if (s.op == kAverage) average(s);
    if (s.op == kBilinear || s.op == kAverage) s.option = next(0, 1, "option of a step") == 1;
    Finish& f = s.conv.finish;
    if (out >= 0) {
      const Value& v = values_[out];
      check(v.is_float && alike(v, s) && v.channels == s.channels, "size of a result");
      f.out = v.floats;
    }
    operations(s);
    stores(s);
    s.floats = s.source->floats;
    if (s.op == kFloatConv || s.op == kSwin) {  // their result is written, then finished in place
      check(f.out.data != nullptr, "result of a step");
      s.floats = f.out, s.swin.stream = f.out.data;
      if (f.operation_count == 0) f.out = {};
    }
    return s;
  }

 private:
  int64_t count() const { return static_cast<int64_t>(values_.size()); }
  const Value& known(const char* what) { return values_[next(0, count() - 1, what)]; }

  static bool alike(const Value& v, const Step& s) {
    return v.height == s.height && v.width == s.width;
  }

  void pair(int64_t (&numbers)[2], int64_t least) {
    for (int64_t& number : numbers) number = next(least, kMostWindow, "window of a step");
  }

  const float* floats(int64_t length) {
    const int64_t begin = next(0, tables_.constants.count, "place of a constant");
    check(length <= tables_.constants.count - begin, "place of a constant");
    return tables_.constants.data + begin;
  }

  static void windows(const Step& s, const int64_t (&kernel)[2], const int64_t (&stride)[2],
                      const int64_t (&padding)[2]) {
    const int64_t size[2] = {s.source->height, s.source->width}, result[2] = {s.height, s.width};
    for (int i = 0; i < 2; ++i) {
      const int64_t room = size[i] + 2 * padding[i] - kernel[i];
      check(room >= 0 && result[i] == room / stride[i] + 1, "size of a step");
    }
  }

  void pad(Step& s) {
    const int64_t size[2] = {s.source->height, s.source->width}, result[2] = {s.height, s.width};
    int64_t after[2];
    for (int i = 0; i < 2; ++i) {
      s.padding[i] = next(0, kMostWindow, "padding of a step");
      after[i] = next(0, kMostWindow, "padding of a step");
      check(result[i] == size[i] + s.padding[i] + after[i], "size of a step");
    }
    s.option = next(0, 1, "option of a step") == 1;
    for (int i = 0; i < 2; ++i)
      check(!s.option || std::max(s.padding[i], after[i]) < size[i], "a reflection of all");
  }

  void average(Step& s) {
    pair(s.kernel, 0), pair(s.stride, 1), pair(s.padding, 0);
    if (s.kernel[0] == 0 && s.kernel[1] == 0) {
      s.kernel[0] = s.stride[0] = s.source->height, s.kernel[1] = s.stride[1] = s.source->width;
      check(s.padding[0] == 0 && s.padding[1] == 0, "padding of an average");
    }
    windows(s, s.kernel, s.stride, s.padding);
    check(s.padding[0] < s.kernel[0] && s.padding[1] < s.kernel[1], "padding of an average");
  }

  void convolution(Step& s) {
    const Value& v = *s.source;
    ConvShape& shape = s.conv.shape;
    const int64_t first = next(0, v.channels, "input channels");
    shape.in = next(1, v.channels, "input channels");
    shape.out = s.channels;
    shape.groups = next(1, kMostChannels, "groups");
    int64_t kernel[2], stride[2], dilation[2], padding[2];
    pair(kernel, 1), pair(stride, 1), pair(dilation, 1), pair(padding, 0);
    shape.kernel_h = kernel[0], shape.kernel_w = kernel[1];
    shape.stride_h = stride[0], shape.stride_w = stride[1];
    shape.dilation_h = dilation[0], shape.dilation_w = dilation[1];
    shape.pad_h = padding[0], shape.pad_w = padding[1];
    shape.weight_bits = static_cast<int>(next(1, kMaxBits, "bits of weights"));
    shape.in_bits = v.bits, shape.in_signed = v.is_signed;
    check(shape.in % shape.groups == 0 && shape.out % shape.groups == 0, "groups");
    int64_t reach[2];
    for (int i = 0; i < 2; ++i) reach[i] = dilation[i] * (kernel[i] - 1) + 1;
    windows(s, reach, stride, padding);
    check(padding[0] <= v.codes.frame.top && padding[1] <= v.codes.frame.left, "frame");
    check(shape.taps() * filled(shape.in, kMapLanes) << (shape.in_bits + shape.weight_bits - 1) <
              int64_t{1} << 31,
          "the sums could leave int32");
    check(first % kMapLanes == 0 && filled(shape.in, kMapLanes) <= v.channels - first,
          "input channels");
    s.conv.in = v.codes;
    s.conv.in.data += first;
    s.conv.in.channels = filled(shape.in, kMapLanes);
    s.conv.height = s.height, s.conv.width = s.width;
    s.row = find_conv(kernel_.c_str(), shape);
    check(s.row != nullptr, "no kernel of this name runs a convolution of it");
    const int64_t begin = next(0, tables_.weights.count, "place of weights");
    check(begin % 64 == 0 && s.row->laid_out_bytes(shape) <= tables_.weights.count - begin,
          "place of weights");
    s.conv.weights = tables_.weights.data + begin;
    const int64_t out = filled(shape.out, kMapLanes);
    s.conv.finish.scale = floats(2 * out);
    s.conv.finish.bias = s.conv.finish.scale + out;
    s.cost = 0.125 * s.width * shape.taps() * shape.in / shape.groups * shape.out;
  }

  void float_convolution(Step& s) {
    const Value& v = *s.source;
    const int64_t once[2] = {1, 1}, out = filled(s.channels, kMapLanes);
    pair(s.kernel, 1), pair(s.padding, 0);
    windows(s, s.kernel, once, s.padding);
    check(s.padding[0] < s.kernel[0] && s.padding[1] < s.kernel[1], "padding of a step");
    const int64_t products = s.kernel[0] * s.kernel[1] * v.channels * out;
    const float *weights = floats(products), *bias = floats(out);
    s.float_conv = {nullptr, weights,    bias,       nullptr, 1,           kTogether,
                    s.width, v.channels, s.channels, out,     s.kernel[0], s.kernel[1]};
    s.cost = s.width / 8.0 * products;
  }

  // Rows of filled channels, and what a norm has for them.
  void norm(Step& s) {
    check(s.channels % kRowLanes == 0, "channels of a norm");
    s.norm.channels = s.channels, s.norm.features = next(1, s.channels, "features of a norm");
    const float* at = floats(2 * s.channels + 1);
    s.norm.norm = {at, at + s.channels, at[2 * s.channels]};
    swin_row(s, 0);
  }

  // A layer in windows. Its numbers: window, shift, features, heads, hidden channels; the most bits
  // that two factors of its linear layers have together, and the offset of each one's input; whether
  // products are of codes, then bits and sign of q, k, probabilities and v; where weights begin,
  // and where constants do.
  void swin(Step& s) {
    SwinLayer& job = s.swin;
    WindowAttention& a = job.attention;
    const int64_t c = s.channels;
    job.from = s.source->floats.data, job.height = s.height, job.width = s.width, job.channels = c;
    job.window = next(2, 64, "window"), job.shift = next(0, job.window - 1, "shift");
    job.features = next(1, 4096, "features"), a.heads = next(1, job.features, "heads");
    const int64_t hidden = filled(next(1, kMostChannels, "hidden channels"), kSwinChannels);
    const int64_t triple = filled(3 * job.features, kSwinChannels);
    const bool whole = s.height % job.window == 0 && s.width % job.window == 0;
    check(job.window % 2 == 0 && whole, "height and width are whole windows, of even size");
    check(job.features % a.heads == 0 && filled(job.features, kSwinChannels) == c, "features");
    a.pixels = job.window * job.window, a.padded = filled(a.pixels, kRowLanes);
    a.width = job.features / a.heads;
    int64_t bits = next(2, 2 * kMaxBits, "bits of a layer");
    int64_t offsets[4];
    for (int64_t& offset : offsets) offset = next(0, 128, "codes of a layer");
    const bool quantised = next(0, 1, "products of a layer") == 1;
    CodeKind kinds[4];
    for (CodeKind& kind : kinds)
      if (quantised) kind = {next(1, kMaxBits, "bits"), next(0, 1, "sign of codes") == 1};

    const int64_t sizes[4][2] = {{c, triple}, {c, c}, {c, hidden}, {hidden, c}};
    ByteLinear* const linears[4] = {&job.qkv, &job.proj, &job.fc1, &job.fc2};
    int64_t room = 0, arrays = 4 * c + a.heads * a.pixels * a.padded + 2 + 4 * 3 + 1 + 4;
    for (const auto& [in, out] : sizes) room += (in + 4) * out, arrays += in + 2 * out;
    const int64_t begin = next(0, tables_.weights.count, "place of weights");
    check(begin % 64 == 0 && room <= tables_.weights.count - begin, "place of weights");
    const uint8_t* weights = tables_.weights.data + begin;
    const float* at = floats(arrays);
    const auto take = [&at](int64_t count) { return (at += count) - count; };
    for (Norm* norm : {&job.norm1, &job.norm2}) norm->weight = take(c), norm->bias = take(c);
    for (int i = 0; i < 4; ++i) {
      const auto [in, out] = sizes[i];
      const float *tau = take(in), *scale = take(out), *bias = take(out);
      *linears[i] = {in, out, reinterpret_cast<const int8_t*>(weights),
                     reinterpret_cast<const int32_t*>(weights + in * out), scale, bias, tau, {}};
      weights += (in + 4) * out;
    }
    a.bias = take(a.heads * a.pixels * a.padded);
    job.norm1.eps = *take(1), job.norm2.eps = *take(1);
    for (int i = 0; i < 4; ++i) {
      const float* grid = take(3);
      linears[i]->codes = {grid[0], grid[1], grid[2], static_cast<int32_t>(offsets[i])};
    }
    a.query_scale = *take(1);
    const float* steps = take(4);
    if (quantised) bits = std::max(bits, quantise(a, steps, kinds));
    swin_row(s, bits);
  }

  void swin_row(Step& s, int64_t bits) {
    s.swin_row = find_swin(swin_.c_str(), static_cast<int>(bits));
    check(s.swin_row != nullptr, "no kernel of this name runs a layer in windows of it");
  }

  void operations(Step& s) {
    enum { kRelu, kLeaky, kTimes, kPlus, kAdd, kMul, kMinus, kFrom, kScaled, kFactors, kElements };
    Finish& f = s.conv.finish;
    const int64_t lanes = filled(s.channels, kMapLanes), count = next(0, kMostOperations, "finish");
    const auto put = [&](Operation operation) {
      check(f.operation_count < kMostOperations, "finish");
      f.operations[f.operation_count++] = operation;
    };
    for (int64_t i = 0; i < count; ++i) {
      const int64_t op = next(kRelu, kElements + kElementCount - 1, "operation of a finish");
      const int64_t most = op == kFactors ? kMostSteps : this->count() - 1;
      const int64_t id = next(-1, most, "operand of a finish");
      const float* array = nullptr;
      if (op == kLeaky || op == kTimes || op == kPlus)
        array = floats(lanes);
      else if (op == kScaled || op == kFactors)
        array = floats(op == kScaled ? 1 : id);
      else
        next(0, 0, "operand of a finish");
      FloatMap map{};
      if (op >= kAdd && op <= kScaled) {
        const bool one = id >= 0 && values_[id].height == 1 && values_[id].width == 1;
        check(id >= 0 && values_[id].is_float && (one || alike(values_[id], s)) &&
                  values_[id].channels == s.channels,
              "operand of a finish");
        map = values_[id].floats;
        if (one) map.row = map.pixel = 0;
      } else if (array && op != kFactors) {  // the same for all pixels
        map = {const_cast<float*>(array), 0, 0, lanes};
      }
      static const float minus_one = -1.0f;
      switch (op) {
        case kRelu: put({qsr::Op::kRelu, 1.0f, nullptr, 0, {}}); break;
        case kLeaky: put({qsr::Op::kLeaky, 1.0f, array, 0, {}}); break;
        case kTimes: case kMul: put({qsr::Op::kMultiply, 1.0f, nullptr, 0, map}); break;
        case kFrom: put({qsr::Op::kFactors, 1.0f, &minus_one, 1, {}}); [[fallthrough]];
        case kPlus: case kAdd: put({qsr::Op::kAdd, 1.0f, nullptr, 0, map}); break;
        case kMinus: put({qsr::Op::kAdd, -1.0f, nullptr, 0, map}); break;
        case kScaled: put({qsr::Op::kAdd, *array, nullptr, 0, map}); break;
        case kFactors: put({qsr::Op::kFactors, 1.0f, array, id, {}}); break;
        default: put({kElement[op - kElements].op, 1.0f, nullptr, 0, {}});
      }
    }
  }

  void stores(Step& s) {
    Finish& f = s.conv.finish;
    const bool moves = s.op >= kPool;
    const int64_t count = next(moves || !f.out.data ? 1 : 0, moves ? 1 : kMostCodes, "stores");
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = next(0, this->count() - 1, "value of a store");
      const Value& v = values_[id];
      check(!v.is_float && alike(v, s), "size of codes");
      const int64_t at = next(0, v.channels, "channel of a store");
      const int64_t stored = !moves              ? s.channels
                             : s.op == kShuffle ? s.source->channels / (s.factor * s.factor)
                                                : s.source->channels;
      CodeMap map = v.codes;
      map.data += at;
      map.channels = filled(stored, kMapLanes);
      check(at % kMapLanes == 0 && map.channels <= v.channels - at, "room of a store");
      if (moves) {
        check(v.is_signed == s.source->is_signed, "sign of codes");
        s.to = map;
      } else {
        const float* tau = floats(map.channels);
        const float* grid = floats(3);
        f.codes[f.code_count++] = {map, tau, grid[0], grid[1], grid[2]};
      }
      if (begun_.size() < values_.size()) begun_.resize(values_.size());
      if (!begun_[id]) s.begun.push_back(v.codes);
      begun_[id] = true;
    }
  }

  const Tables& tables_;
  const std::string &kernel_, &swin_;
  std::vector<Value>& values_;
  std::vector<bool> begun_;
  int64_t at_ = 0;
};

Executor::Executor(const Tables& tables, const std::string& kernel, const std::string& swin) {
  Reader reader(tables, kernel, swin, values_);
  const int64_t values = reader.next(1, kMostValues, "number of values");
  const int64_t steps = reader.next(1, kMostSteps, "number of steps");
  values_.reserve(values);  // steps point at them
  for (int64_t i = 0; i < values; ++i) reader.value();
  for (int64_t i = 0; i < steps; ++i) steps_.push_back(reader.step());
  check(reader.done(), "it has more numbers than it needs");
}

void Executor::run(int64_t number, const Bands& bands) const {
  const Step& s = steps_[number];
  if (s.op == kSwin) {  // window by window, before its finish
    const SwinLayer& job = s.swin;
    const int64_t pixels = job.attention.pixels;
    const double products = 1.0 * s.channels * (s.channels + job.qkv.out + 2 * job.fc1.out);
    bands(s.height * s.width / pixels, pixels / 8.0 * products,
          [&](int64_t first, int64_t last) { s.swin_row->layer(job, first, last); });
    if (!finishes(s)) return;
  }
  const int64_t rows = s.op == kConv ? s.row->rows : 1;
  bands((s.height + rows - 1) / rows, s.cost * rows,
        [&](int64_t first, int64_t last) { band(s, first * rows, std::min(last * rows, s.height)); });
}

// Row y of a norm or a resampling step, [width, channels].
void Executor::resampled(const Step& s, int64_t y, float* scratch, float* row) const {
  const FloatMap& in = s.source->floats;
  const int64_t height = s.source->height, width = s.source->width, channels = s.channels;
  if (s.op == kNorm) {
    NormRows job = s.norm;
    job.x = in.data + y * in.row, job.out = row;
    s.swin_row->norm(job, 0, width);
    return;
  }
  if (s.op == kBilinear) {
    const Between rows(y, height, s.height, s.option);
    mix(in.data + rows.first * in.row, in.data + rows.second * in.row, rows.weight, in.row, scratch);
    for (int64_t x = 0; x < s.width; ++x) {
      const Between at(x, width, s.width, s.option);
      mix(scratch + at.first * channels, scratch + at.second * channels, at.weight, channels,
          row + x * channels);
    }
    return;
  }
  float* const sums = scratch + s.kernel[1] * channels;  // of the rows of a window
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  for (int64_t x = 0; x < s.width; ++x) {
    const int64_t top = y * s.stride[0] - s.padding[0], left = x * s.stride[1] - s.padding[1];
    for (int64_t dy = 0; dy < s.kernel[0]; ++dy) {
      for (int64_t dx = 0; dx < s.kernel[1]; ++dx) {
        const bool inside = top + dy >= 0 && top + dy < height && left + dx >= 0 && left + dx < width;
        float* const to = scratch + dx * channels;
        if (inside)
          std::memcpy(to, in.data + (top + dy) * in.row + (left + dx) * channels, bytes);
        else
          std::memset(to, 0, bytes);
      }
      tree_sum(scratch, s.kernel[1], channels);
      std::memcpy(sums + dy * channels, scratch, bytes);
    }
    tree_sum(sums, s.kernel[0], channels);
    int64_t count = s.kernel[0] * s.kernel[1];
    if (!s.option)
      count = (std::min(top + s.kernel[0], height) - std::max<int64_t>(top, 0)) *
              (std::min(left + s.kernel[1], width) - std::max<int64_t>(left, 0));
    for (int64_t c = 0; c < channels; ++c)
      row[x * channels + c] = sums[c] / static_cast<float>(count);
  }
}

bool Executor::finishes(const Step& s) {
  return s.conv.finish.out.data || s.conv.finish.code_count;
}

// What becomes of the rows [first, last) of s.floats.
void Executor::finish(const Step& s, int64_t first, int64_t last) const {
  if (finishes(s)) maps_kernel().finish(s.floats, s.conv.finish, s.width, s.channels, first, last);
}

// Rows [first, last) of a step.
void Executor::band(const Step& s, int64_t first, int64_t last) const {
  for (const CodeMap& map : s.begun) zero_frame(map, first, last);
  switch (s.op) {
    case kConv: {
      const int64_t rows = s.row->rows;
      run_strips(*s.row, s.conv, first / rows, (last + rows - 1) / rows);
      break;
    }
    case kFloat:
    case kSwin:
      finish(s, first, last);
      break;
    case kFloatConv: {
      FloatConv2d job = s.float_conv;
      const int64_t above = job.kernel_h - 1, row = (s.width + job.kernel_w - 1) * job.channels;
      std::vector<float> scratch((kTogether + above) * row);
      job.x = scratch.data();
      for (int64_t y = first; y < last; y += kTogether) {
        const int64_t count = std::min(kTogether, last - y);
        rows_with_zeros(s.source->floats, s.source->height, s.source->width, s.padding[1],
                        y - s.padding[0], count + above, scratch.data());
        job.out = s.floats.data + y * s.floats.row;
        conv2d_float(job, 0, count);
        finish(s, y, y + count);
      }
      break;
    }
    case kNorm:
    case kBilinear:
    case kAverage: {  // a row is made, then finished from the cache
      const int64_t used = s.op == kBilinear ? s.source->width : s.kernel[0] + s.kernel[1];
      std::vector<float> scratch((used + s.width) * s.channels);
      float* const row = scratch.data() + used * s.channels;
      for (int64_t y = first; y < last; ++y) {
        resampled(s, y, scratch.data(), row);
        maps_kernel().finish({row, 0, s.channels, s.channels}, s.conv.finish, s.width, s.channels, y,
                             y + 1);
      }
      break;
    }
    case kPool:
      (s.source->is_signed ? pool_rows<int8_t> : pool_rows<uint8_t>)(
          s.source->codes, s.to, s.kernel, s.stride, s.padding, first, last);
      break;
    case kNearest:
      nearest_rows(s.source->codes, s.to, s.factor, first, last);
      break;
    case kPad:
      pad_rows(s.source->codes, s.to, s.padding, s.option, first, last);
      break;
    case kShuffle:
      (s.factor == 2   ? shuffle_rows<2>
       : s.factor == 3 ? shuffle_rows<3>
       : s.factor == 4 ? shuffle_rows<4>
                       : shuffle_rows<0>)(s.source->codes, s.to, s.factor, first, last);
      break;
  }
}

}  // namespace qsr
