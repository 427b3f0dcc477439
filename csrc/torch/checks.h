// What keeps a call inside its tensors: a kernel gets pointers and sizes only through here.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "network/conv.h"

namespace qsr {

// A string that an operator takes. PyTorch's conversion to std::string (2.10 to 2.13) leaves a copy
// on the heap that nobody frees, 48 bytes a call; this one, below, does not.
struct Name : std::string {
  using std::string::string;
};

template <class T>
constexpr auto kTypeOf = torch::headeronly::ScalarType::Float;
template <>
inline constexpr auto kTypeOf<uint8_t> = torch::headeronly::ScalarType::Byte;
template <>
inline constexpr auto kTypeOf<int8_t> = torch::headeronly::ScalarType::Char;
template <>
inline constexpr auto kTypeOf<int64_t> = torch::headeronly::ScalarType::Long;
template <>
inline constexpr auto kTypeOf<int32_t> = torch::headeronly::ScalarType::Int;

// The number of elements of an array of these sizes. Sizes come from outside, and the sizes of a
// tensor without elements can be anything: each product that becomes a count or an offset is made
// here, and refused where it, times the bytes of an element, could leave 64 bits.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t all = 1;
  bool fits = true, none = false;
  for (const int64_t size : sizes) {
    fits = fits && size >= 0 && size <= (int64_t{1} << 40);
    none = none || size == 0;
    fits = fits && !__builtin_mul_overflow(all, size ? size : 1, &all) && all <= int64_t{1} << 56;
  }
  STD_TORCH_CHECK(fits, "the sizes are negative, or too large together");
  return none ? 0 : all;
}

// The elements of a contiguous tensor on the CPU; its type must be T.
template <class T>
T* elements(const torch::stable::Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == kTypeOf<T>, name,
                  " must be contiguous, on the CPU, of the right type");
  return static_cast<T*>(t.mutable_data_ptr());
}

// The same, of a tensor that must have `count` elements.
template <class T>
T* exactly(const torch::stable::Tensor& t, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.numel() == count, name, " must be of ", count, " elements");
  return elements<T>(t, name);
}

// The same, of a tensor that must have `count` elements or more.
template <class T>
T* at_least(const torch::stable::Tensor& t, int64_t count, const char* name) {
  STD_TORCH_CHECK(t.numel() >= count, name, " must be of ", count, " elements or more");
  return elements<T>(t, name);
}

inline void check_bits(int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxBits, "bits must be 1 to 8");
}

// A named kernel runs or raises; only "auto" chooses. row: what a `find` of dispatch.cpp gave;
// able: those that could. std::invalid_argument is ValueError in Python.
template <class Row>
const Row& chosen(const Row* row, const std::string& kernel, const std::string& job,
                  const std::string& able) {
  if (row) return *row;
  throw std::invalid_argument("`kernel` is '" + kernel + "', which does not run " + job +
                              " here; choose one of " + able + ", or 'auto'.");
}

inline void check_words(const torch::stable::Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
  STD_TORCH_CHECK(t.scalar_type() == torch::headeronly::ScalarType::Long && t.dim() == 6, name,
                  " must be int64 [N, H, W, groups, bits, words]");
  STD_TORCH_CHECK(t.size(4) >= 1 && t.size(4) <= kMaxBits, name, " must have 1 to 8 planes");
  STD_TORCH_CHECK(t.size(3) >= 1 && t.size(5) >= 1, name, " must have a group and a word or more");
  product({t.size(0), t.size(1), t.size(2), t.size(3), t.size(5), kWordBits});
}

// The job, and where its output comes. a and w must be on the device of the caller.
inline Conv2d conv2d_job(const torch::stable::Tensor& a, const torch::stable::Tensor& w,
                         bool a_signed, bool w_signed, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, torch::stable::Tensor& out) {
  check_words(a, "a");
  check_words(w, "w");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2, "stride and padding are pairs");
  constexpr int64_t kMost = 1 << 20;
  for (const int64_t step : stride)
    STD_TORCH_CHECK(step >= 1 && step <= kMost, "stride must be 1 to 2^20");
  for (const int64_t pad : padding)
    STD_TORCH_CHECK(pad >= 0 && pad <= kMost, "padding must be 0 to 2^20");
  STD_TORCH_CHECK(
      w.size(3) == 1 && a.size(5) == w.size(5) && a.size(3) >= 1 && w.size(0) % a.size(3) == 0,
      "a and w must have the same words a group, and groups must divide the outputs");
  Conv2d job{};
  job.n = a.size(0), job.height = a.size(1), job.width = a.size(2), job.groups = a.size(3);
  job.words = a.size(5), job.out_channels = w.size(0);
  job.kernel_h = w.size(1), job.kernel_w = w.size(2);
  job.stride_h = stride[0], job.stride_w = stride[1];
  job.pad_h = padding[0], job.pad_w = padding[1];
  job.a_bits = static_cast<int>(a.size(4)), job.w_bits = static_cast<int>(w.size(4));
  job.a_signed = a_signed, job.w_signed = w_signed;
  STD_TORCH_CHECK(
      job.height + 2 * job.pad_h >= job.kernel_h && job.width + 2 * job.pad_w >= job.kernel_w,
      "the kernel must fit into the padded picture");
  STD_TORCH_CHECK(job.kernel_h >= 1 && job.kernel_w >= 1, "the kernel must have a tap or more");
  const int64_t depth = product({job.kernel_h, job.kernel_w, job.words, kWordBits});
  const int64_t largest_a = a_signed ? 1 << (job.a_bits - 1) : (1 << job.a_bits) - 1;
  const int64_t largest_w = w_signed ? 1 << (job.w_bits - 1) : (1 << job.w_bits) - 1;
  STD_TORCH_CHECK(product({depth, largest_a, largest_w}) < (int64_t{1} << 31),
                  "the sums could leave int32");
  job.out_h = (job.height + 2 * job.pad_h - job.kernel_h) / job.stride_h + 1;
  job.out_w = (job.width + 2 * job.pad_w - job.kernel_w) / job.stride_w + 1;
  product({job.n, job.out_h, job.out_w, job.out_channels});
  out = torch::stable::new_empty(a, {job.n, job.out_h, job.out_w, job.out_channels},
                                 torch::headeronly::ScalarType::Int);
  job.a = static_cast<const Word*>(a.const_data_ptr());
  job.w = static_cast<const Word*>(w.const_data_ptr());
  job.out = static_cast<int32_t*>(out.mutable_data_ptr());
  return job;
}

}  // namespace qsr

template <>
struct torch::stable::detail::ToImpl<qsr::Name> {
  static qsr::Name call(StableIValue value, uint64_t, bool) {
    const auto handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    const bool read = !torch_string_length(handle, &length) && !torch_string_c_str(handle, &data);
    const qsr::Name name(data ? data : "", read ? length : 0);
    STD_TORCH_CHECK(!torch_delete_string(handle) && read, "a string could not be read");
    return name;
  }
};
