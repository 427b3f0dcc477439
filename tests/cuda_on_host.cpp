// Runs on the host what each CUDA thread would compute, output by output (tests/test_cuda.py).
#include "cuda/core.h"

extern "C" void conv2d_on_host(const int64_t* sizes, const qsr::Word* a, const qsr::Word* w,
                               bool linear, int32_t* out) {
  qsr::Conv2d job{};
  int64_t* const fields[] = {&job.n,     &job.height,       &job.width,    &job.groups,
                             &job.words, &job.out_channels, &job.kernel_h, &job.kernel_w,
                             &job.out_h, &job.out_w,        &job.stride_h, &job.stride_w,
                             &job.pad_h, &job.pad_w};
  for (int64_t* field : fields) *field = *sizes++;
  job.a_bits = static_cast<int>(*sizes++), job.w_bits = static_cast<int>(*sizes++);
  job.a_signed = *sizes++, job.w_signed = *sizes++;
  job.a = a, job.w = w;
  for (int64_t i = 0; i < job.n * job.out_h * job.out_w * job.out_channels; ++i)
    out[i] = linear ? linear_output(job, i) : conv2d_output(job, i);
}

// ranges: step, low and high of q, k, probabilities and v. codes and probabilities: scratch.
extern "C" void attention_on_host(const int64_t* sizes, float query_scale, const float* ranges,
                                  const float* qkv, const float* bias, const float* mask,
                                  int16_t* codes, int16_t* probabilities, float* out) {
  qsr::CudaAttention job{};
  job.windows = sizes[0], job.pixels = sizes[1], job.heads = sizes[2], job.width = sizes[3];
  job.masks = sizes[4], job.query_scale = query_scale;
  job.qkv = qkv, job.bias = bias, job.mask = mask;
  for (qsr::CodeRange* range : {&job.q, &job.k, &job.p, &job.v})
    *range = {ranges[0], ranges[1], ranges[2]}, ranges += 3;
  job.codes = codes, job.probabilities = probabilities, job.out = out;
  const int64_t rows = job.windows * job.heads * job.pixels;
  for (int64_t i = 0; i < 3 * rows * job.width; ++i) attention_code(job, i);
  for (int64_t i = 0; i < rows; ++i) attention_row(job, i);
  for (int64_t i = 0; i < rows * job.width; ++i) attention_output(job, i);
}
