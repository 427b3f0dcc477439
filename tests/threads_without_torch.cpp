// Networks in several threads, without torch, for ThreadSanitizer (torch does not start under it):
// the code of csrc/network is called as the operators call it, with threads inside of each call.
//
//     threads_without_torch THREADS CALLS [shared]
//
// Everything runs once alone. Then each thread runs it CALLS times in maps of its own, which must
// get the same bytes. "shared": in the same maps, which the sanitizer must not let pass.
//
// With QSR_ALL_ROWS: all rows of the tables that this processor has, else the portable ones.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "network/executor.h"
#include "network/maps.h"
#include "network/swin.h"
#include "network/tail.h"

namespace {

constexpr int64_t kHeight = 8, kWidth = 4, kChannels = 64, kLayers = 2;
constexpr int64_t kWindow = 4, kFeatures = 60, kHeads = 6, kScale = 2, kOutputs = 16;
constexpr int64_t kPixels = kHeight * kWidth;
constexpr int kBits = 4;

// Two threads in the place of torch's.
void parallel(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& work) {
  std::thread half([&] { work(count / 2, count); });
  work(0, count / 2);
  half.join();
}

template <class Job>
void run(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t count) {
  parallel(count, 0, [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

// What all threads read. Values are any; codes are of 4 bits.
struct Weights {
  std::mt19937 random{1};
  std::vector<float> lr = floats(3 * kPixels);
  std::vector<float> values = floats(4096), ones = std::vector<float>(4096, 1.0f);
  std::vector<float> inside = floats(64 * kChannels * kOutputs);
  std::vector<float> ring = floats(16 * 25 * kChannels * kOutputs);
  std::vector<float> position_bias = floats(kHeads * 16 * 16);
  std::vector<int8_t> codes = small(kLayers * 9 * kChannels * kChannels);
  std::vector<int8_t> linear = small(64 * 192);
  std::vector<int32_t> start = std::vector<int32_t>(192, 3);

  std::vector<float> floats(int64_t count) {
    std::vector<float> made(count);
    for (float& x : made) x = static_cast<float>(random() % 1000) / 1000.0f - 0.5f;
    return made;
  }
  std::vector<int8_t> small(int64_t count) {
    std::vector<int8_t> made(count);
    for (int8_t& x : made) x = static_cast<int8_t>(random() % 16) - 8;
    return made;
  }
};

// What a call owns.
struct Maps {
  alignas(64) uint8_t workspace[1 << 16];
  std::vector<float> features = std::vector<float>(kPixels * kChannels);
  std::vector<float> stream = features, sr = std::vector<float>(3 * kScale * kScale * kPixels);
};

// The plan of a residual block between a head and the tail (executor.h has the tables).
struct Convolutional {
  const Weights& weights;
  const qsr::ConvKernel& row;
  const qsr::TailKernel& tail;
  std::vector<int64_t> numbers = {7, 4};
  qsr::Bytes laid_out;
  int64_t bytes;

  Convolutional(const Weights& w, const qsr::ConvKernel& r, const qsr::TailKernel& t)
      : weights(w), row(r), tail(t), laid_out(1 << 20), bytes(0) {
    const qsr::ConvShape shape = qsr::shape_3x3(kChannels, kBits, true);
    bytes = qsr::filled(row.laid_out_bytes(shape), 64);
    for (int64_t i = 0; i < kLayers; ++i)
      row.lay_out(w.codes.data() + i * 9 * kChannels * kChannels, shape,
                  static_cast<uint8_t*>(laid_out.data()) + i * bytes);
    enum { kConv, kFloat, kFloatConv };
    enum { kRelu, kAdd = 4, kScaled = 8, kFactors };
    const auto put = [&](std::initializer_list<int64_t> more) {
      numbers.insert(numbers.end(), more);
    };
    const int64_t floats = 4 * kPixels * kChannels, codes = (kHeight + 2) * (kWidth + 2) * kChannels;
    const int64_t map = 3 * floats;  // where codes begin; kHeight and kWidth are whole tiles
    put({1, 1, 0, kHeight, kWidth, 3, 0, 0, 0, 0});  // 0: lr
    put({1, 0, 0, kHeight, kWidth, kChannels, 0, 0, 0, 0});  // 1: shallow
    put({1, 0, floats, kHeight, kWidth, kChannels, 0, 0, 0, 0});  // 2: deep
    put({1, 2, 0, kHeight, kWidth, kChannels, 0, 0, 0, 0});  // 3: features
    for (int64_t i = 0; i < 3; ++i)  // 4 to 6: codes
      put({0, 0, map + i * codes, kHeight, kWidth, kChannels, 1, 1, kBits, 1});
    const int64_t size = kHeight, one = 1, tau = 0, grid = 4096;
    put({kFloatConv, 0, 1, size, kWidth, kChannels, 3, 3, 1, 1, 64, 0, 0, 0});
    put({kFloat, 1, 2, size, kWidth, kChannels, one, kFactors, 2, 7, one, 4, 0, tau, grid});
    for (int64_t i = 0; i < kLayers; ++i) {
      put({kConv, 4 + i, i ? 3 : -1, size, kWidth, kChannels, 0, kChannels, 1, 3, 3, 1, 1, 1, 1, 1, 1});
      put({kBits, i * bytes, 128});
      if (i)
        put({2, kScaled, 2, 5, kAdd, 1, 0, 0});
      else
        put({1, kRelu, -1, 0, 1, 5, 0, tau, grid});
    }
  }

  void operator()(Maps& maps) const {
    std::vector<float> constants = weights.values;
    constants.insert(constants.end(), {0.3f, -8.0f, 7.0f});
    float* const lr = const_cast<float*>(weights.lr.data());
    const qsr::Tables tables{
        {numbers.data(), static_cast<int64_t>(numbers.size())},
        {constants.data(), static_cast<int64_t>(constants.size())},
        {static_cast<const uint8_t*>(laid_out.data()), 1 << 20},
        {maps.workspace, sizeof maps.workspace},
        {{lr, static_cast<int64_t>(weights.lr.size())}},
        {{maps.features.data(), static_cast<int64_t>(maps.features.size())}}};
    const qsr::Executor plan(tables, row.name, "auto");
    for (int64_t step = 0; step < plan.steps(); ++step)
      plan.run(step, [](int64_t count, double, const auto& work) { parallel(count, 0, work); });
    qsr::Tail job{kHeight, kWidth, kChannels, kScale, kOutputs, maps.features.data(),
                  weights.inside.data(), weights.ring.data(), weights.values.data(),
                  maps.sr.data()};
    run(tail.run, job, (kHeight + qsr::kTailRows - 1) / qsr::kTailRows);
  }
};

// A norm, a layer with shifted windows and quantised products, and codes of the stream.
struct Transformer {
  const Weights& weights;
  const qsr::SwinKernel& row;

  qsr::ByteLinear linear(int64_t out) const {
    const float* values = weights.values.data();
    return {kChannels, out, weights.linear.data(), weights.start.data(), values, values + 192,
            values + 384, {0.3f, -8.0f, 7.0f, 8}};
  }

  void operator()(Maps& maps) const {
    const float* values = weights.values.data();
    const qsr::Norm norm{weights.ones.data(), values, 1e-5f};
    for (int64_t i = 0; i < kPixels * kChannels; ++i)
      maps.features[i] = i % kChannels < kFeatures ? values[i % 4096] : 0.0f;
    run(row.norm, qsr::NormRows{maps.features.data(), maps.stream.data(), kChannels, kFeatures, norm},
        kPixels);
    qsr::SwinLayer job{};
    job.from = job.stream = maps.stream.data();
    job.height = kHeight, job.width = kWidth, job.channels = kChannels, job.features = kFeatures;
    job.window = kWindow, job.shift = kWindow / 2, job.norm1 = job.norm2 = norm;
    job.qkv = linear(192), job.proj = job.fc1 = job.fc2 = linear(64);
    qsr::WindowAttention& a = job.attention;
    a.pixels = a.padded = kWindow * kWindow, a.heads = kHeads, a.width = kFeatures / kHeads;
    a.quantised = true, a.query_scale = 0.3f, a.qk_scale = a.pv_scale = 0.09f;
    a.q = a.k = a.v = {0.3f, -8.0f, 7.0f, 0};
    a.q.offset = 8, a.p = {0.1f, 0.0f, 15.0f, 0}, a.bias = weights.position_bias.data();
    run(row.layer, job, kPixels / a.pixels);
    const qsr::FloatMap stream{maps.stream.data(), kWidth * kChannels, kChannels, kChannels};
    const qsr::CodeMap codes{maps.workspace, kHeight, kWidth, kChannels, kChannels,
                             qsr::Frame::around(kHeight, kWidth, 1, 1)};
    parallel(kHeight, 0, [&](int64_t first, int64_t last) {
      qsr::kMapsPortable.quantize(stream, {codes, values, 0.3f, -8.0f, 7.0f}, first, last);
    });
  }
};

bool same(const Maps& a, const Maps& b) {
  return a.features == b.features && a.stream == b.stream && a.sr == b.sr;
}

// Runs `network` by threads; returns whether each got the bytes of one alone.
template <class Network>
bool together(const Network& network, int threads, int calls, bool shared) {
  Maps alone, one;
  network(alone);
  std::vector<int> wrong(threads);
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t)
    running.emplace_back([&, t] {
      for (int i = 0; i < calls; ++i) {
        Maps own;
        Maps& maps = shared ? one : own;
        network(maps);
        wrong[t] += !same(maps, alone);
      }
    });
  for (std::thread& thread : running) thread.join();
  for (int count : wrong)
    if (count) return false;
  return true;
}

template <class Row, class Check>
bool rows(const std::vector<const Row*>& table, const Check& check) {
  bool right = true;
  for (const Row* row : table)
    if (row->supported()) {
      const bool good = check(*row);
      std::printf("%s: %s\n", row->name, good ? "same bytes" : "OTHER BYTES");
      right &= good;
    }
  return right;
}

#ifdef QSR_ALL_ROWS
const std::vector<const qsr::ConvKernel*> kConvolutions = {
    &qsr::kConvWinogradVnni, &qsr::kConvDirectVnni, &qsr::kConvWinogradAvx2, &qsr::kConvDirectAvx2,
    &qsr::kConvPortable};
const std::vector<const qsr::TailKernel*> kTails = {&qsr::kTailAvx512, &qsr::kTailAvx2,
                                                   &qsr::kTailPortable};
const std::vector<const qsr::SwinKernel*> kSwins = {&qsr::kSwinVnni, &qsr::kSwinAvx2,
                                                   &qsr::kSwinPortable};
#else
const std::vector<const qsr::ConvKernel*> kConvolutions = {&qsr::kConvPortable};
const std::vector<const qsr::TailKernel*> kTails = {&qsr::kTailPortable};
const std::vector<const qsr::SwinKernel*> kSwins = {&qsr::kSwinPortable};
#endif

}  // namespace

// In the place of dispatch.cpp.
const qsr::ConvKernel* qsr::find_conv(const char* name, const ConvShape&) {
  for (const ConvKernel* row : kConvolutions)
    if (std::strcmp(row->name, name) == 0) return row;
  return nullptr;
}
const qsr::SwinKernel* qsr::find_swin(const char*, int) { return nullptr; }
const qsr::MapsKernel& qsr::maps_kernel() { return qsr::kMapsPortable; }

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int threads = std::atoi(argv[1]), calls = std::atoi(argv[2]);
  const bool shared = argc > 3 && std::strcmp(argv[3], "shared") == 0;
  const Weights weights;
  bool right = rows(kConvolutions, [&](const qsr::ConvKernel& row) {
    return together(Convolutional(weights, row, qsr::kTailPortable), threads, calls, shared);
  });
  right &= rows(kTails, [&](const qsr::TailKernel& row) {
    return together(Convolutional(weights, qsr::kConvPortable, row), threads, calls, shared);
  });
  right &= rows(kSwins, [&](const qsr::SwinKernel& row) {
    return together(Transformer{weights, row}, threads, calls, shared);
  });
  return right ? 0 : 1;
}
