// Expected Attention's scores: statistics of the last queries, a quadratic form per key, a softmax in double,
// the norm of the values. Mean and covariance are summed as the CPU does, in the same order.
#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kTokens = 128;         ///< per block of threads, one thread each
constexpr int kCovarianceRows = 16;  ///< in shared memory at once
constexpr int kSoftmaxThreads = 1024;

struct Layout {
  std::size_t mean, mean_float, covariance, norms, state, total = 0;

  Layout(const LayerInfo& info, std::int64_t tokens) {
    const auto dim = static_cast<std::size_t>(info.head_dim), heads = static_cast<std::size_t>(info.q_heads);
    mean = take(heads * dim * sizeof(double));
    mean_float = take(heads * dim * sizeof(float));
    covariance = take(heads * dim * dim * sizeof(float));
    norms = take(static_cast<std::size_t>(info.kv_heads) * static_cast<std::size_t>(tokens) * sizeof(double));
    state = take(heads * sizeof(double2));
  }

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = total;
    total += (bytes + 255) / 256 * 256;
    return at;
  }
};

struct ExpectedArgs {
  const __nv_bfloat16 *q, *k, *v;
  std::int64_t q_head_stride, q_token_stride, k_head_stride, k_token_stride, v_head_stride, v_token_stride;
  int tokens, rows, head_dim, group, head_base, kv_base;
  double scale, epsilon;
  bool value_norm;
  double* mean;
  float *mean_float, *covariance;
  double* norms;
  double2* state;  ///< [q_heads]: maximum and sum
  double* importance;
  int* not_finite;
  __device__ int kv_head(int head) const { return (head_base + head) / group - kv_base; }
};

/// A thread per channel.
__global__ void query_mean_kernel(const __grid_constant__ ExpectedArgs args) {
  const int head = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x);
  const __nv_bfloat16* q = args.q + head * args.q_head_stride + channel;
  double mean = 0.0;
  for (int t = args.tokens - args.rows; t < args.tokens; ++t)
    mean += static_cast<double>(__bfloat162float(q[t * args.q_token_stride])) / args.rows;
  args.mean[head * args.head_dim + channel] = mean;
  args.mean_float[head * args.head_dim + channel] = static_cast<float>(mean);
}

/// A block per row of the covariance, a thread per entry.
__global__ void covariance_kernel(const __grid_constant__ ExpectedArgs args) {
  const int head = static_cast<int>(blockIdx.y), a = static_cast<int>(blockIdx.x),
            b = static_cast<int>(threadIdx.x);
  const __nv_bfloat16* q = args.q + head * args.q_head_stride;
  const double mean_a = args.mean[head * args.head_dim + a], mean_b = args.mean[head * args.head_dim + b];
  double sum = 0.0;
  for (int t = args.tokens - args.rows; t < args.tokens; ++t) {
    const __nv_bfloat16* row = q + t * args.q_token_stride;
    sum += (static_cast<double>(__bfloat162float(row[a])) - mean_a) *
           (static_cast<double>(__bfloat162float(row[b])) - mean_b) / args.rows;
  }
  args.covariance[(static_cast<std::int64_t>(head) * args.head_dim + a) * args.head_dim + b] =
      static_cast<float>(sum);
}

__global__ void value_norm_kernel(const __grid_constant__ ExpectedArgs args) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
            head = static_cast<int>(blockIdx.y);
  if (token >= args.tokens) return;
  const __nv_bfloat16* v = args.v + head * args.v_head_stride + token * args.v_token_stride;
  double sum = 0.0;
  for (int c = 0; c < args.head_dim; ++c) {
    const auto x = static_cast<double>(__bfloat162float(v[c]));
    sum += x * x;
  }
  args.norms[static_cast<std::int64_t>(head) * args.tokens + token] = sqrt(sum);
}

/// The exponent s m.k + s^2 k'Ck / 2 of every key: one thread each, the covariance passing through shared
/// memory.
__global__ void __launch_bounds__(kTokens) exponent_kernel(const __grid_constant__ ExpectedArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  const int dim = args.head_dim, words = dim / 2 + 1;  // an odd number of words: no bank conflicts
  auto* covariance = reinterpret_cast<float*>(raw);
  auto* keys = reinterpret_cast<__nv_bfloat162*>(covariance + kCovarianceRows * dim);
  const int head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kTokens;
  const __nv_bfloat16* k = args.k + args.kv_head(head) * args.k_head_stride;
  for (int i = thread; i < kTokens * dim / 2; i += kTokens) {
    const int row = i / (dim / 2), pair = i % (dim / 2);
    const int token = min(first + row, args.tokens - 1);
    keys[row * words + pair] =
        *reinterpret_cast<const __nv_bfloat162*>(k + token * args.k_token_stride + pair * 2);
  }
  const float* from = args.covariance + static_cast<std::int64_t>(head) * dim * dim;
  const __nv_bfloat162* own = keys + thread * words;
  double quadratic = 0.0;
  for (int c = 0; c < dim; c += kCovarianceRows) {
    __syncthreads();
    for (int i = thread; i < kCovarianceRows * dim; i += kTokens) covariance[i] = from[c * dim + i];
    __syncthreads();
    for (int r = 0; r < kCovarianceRows; r += 4) {
      float product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int pair = 0; pair < dim / 2; ++pair) {
        const __nv_bfloat162 both = own[pair];
        const float x = __bfloat162float(both.x), y = __bfloat162float(both.y);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto entry = *reinterpret_cast<const float2*>(covariance + (r + i) * dim + pair * 2);
          product[i] = fmaf(x, entry.x, product[i]);
          product[i] = fmaf(y, entry.y, product[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const __nv_bfloat162 both = own[(c + r + i) / 2];
        const float key = __bfloat162float(i % 2 == 0 ? both.x : both.y);
        quadratic += static_cast<double>(key) * static_cast<double>(product[i]);
      }
    }
  }
  float dot = 0.0f;
  for (int pair = 0; pair < dim / 2; ++pair) {
    const __nv_bfloat162 both = own[pair];
    const auto mean = *reinterpret_cast<const float2*>(args.mean_float + head * dim + pair * 2);
    dot = fmaf(__bfloat162float(both.x), mean.x, dot);
    dot = fmaf(__bfloat162float(both.y), mean.y, dot);
  }
  const double s = args.scale;
  if (first + thread < args.tokens)
    args.importance[static_cast<std::int64_t>(head) * args.tokens + first + thread] =
        s * static_cast<double>(dot) + s * s * quadratic / 2;
}

/// Maximum and sum of the exponentials of one head; sums in a fixed order.
__global__ void __launch_bounds__(kSoftmaxThreads)
    expected_state_kernel(const __grid_constant__ ExpectedArgs args) {
  __shared__ double parts[kSoftmaxThreads];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const double* from = args.importance + static_cast<std::int64_t>(head) * args.tokens;
  double top = -INFINITY;
  for (int t = thread; t < args.tokens; t += kSoftmaxThreads) top = fmax(top, from[t]);
  parts[thread] = top;
  for (int distance = kSoftmaxThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (thread < distance) parts[thread] = fmax(parts[thread], parts[thread + distance]);
  }
  __syncthreads();
  top = parts[0];
  __syncthreads();
  double sum = 0.0;
  for (int t = thread; t < args.tokens; t += kSoftmaxThreads) sum += exp(from[t] - top);
  parts[thread] = sum;
  for (int distance = kSoftmaxThreads / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (thread < distance) parts[thread] += parts[thread + distance];
  }
  if (thread == 0) {
    args.state[head] = make_double2(top, parts[0]);
    if (!isfinite(parts[0]) && args.not_finite != nullptr) args.not_finite[head] = 1;
  }
}

__global__ void importance_kernel(const __grid_constant__ ExpectedArgs args) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
            head = static_cast<int>(blockIdx.y);
  if (token >= args.tokens) return;
  double* at = args.importance + static_cast<std::int64_t>(head) * args.tokens + token;
  const double2 state = args.state[head];
  const double norm =
      args.value_norm ? args.norms[static_cast<std::int64_t>(args.kv_head(head)) * args.tokens + token] : 1.0;
  *at = (exp(*at - state.x) / state.y + args.epsilon) * norm;
}

}  // namespace

std::size_t expected_attention_workspace_bytes(const LayerInfo& info, std::int64_t tokens) {
  return Layout(info, tokens).total;
}

void expected_attention_cuda(const PrefillInput& input, const ExpectedAttentionParams& params,
                             CudaWorkspace workspace, cudaStream_t stream) {
  const LayerInfo& info = input.info;
  const Layout layout(info, input.q.tokens);
  if (workspace.bytes < layout.total)
    throw_cuda(cudaErrorMemoryAllocation, "expected attention: workspace too small");
  auto* base = static_cast<unsigned char*>(workspace.data);
  ExpectedArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(input.q.data);
  args.k = static_cast<const __nv_bfloat16*>(input.k.data);
  args.v = static_cast<const __nv_bfloat16*>(input.v.data);
  args.q_head_stride = input.q.head_stride, args.q_token_stride = input.q.token_stride;
  args.k_head_stride = input.k.head_stride, args.k_token_stride = input.k.token_stride;
  args.v_head_stride = input.v.head_stride, args.v_token_stride = input.v.token_stride;
  args.tokens = static_cast<int>(input.q.tokens);
  args.rows = params.window < args.tokens ? params.window : args.tokens;
  args.head_dim = info.head_dim;
  args.group = info.q_heads_total / info.kv_heads_total;
  args.head_base = info.q_head_begin;
  args.kv_base = info.kv_head_begin;
  args.scale = info.scale;
  args.epsilon = params.epsilon;
  args.value_norm = params.value_norm;
  args.mean = reinterpret_cast<double*>(base + layout.mean);
  args.mean_float = reinterpret_cast<float*>(base + layout.mean_float);
  args.covariance = reinterpret_cast<float*>(base + layout.covariance);
  args.norms = reinterpret_cast<double*>(base + layout.norms);
  args.state = reinterpret_cast<double2*>(base + layout.state);
  args.importance = params.importance;
  args.not_finite = params.not_finite;

  const auto heads = static_cast<unsigned>(info.q_heads), dim = static_cast<unsigned>(info.head_dim);
  const auto blocks = static_cast<unsigned>((args.tokens + kTokens - 1) / kTokens);
  query_mean_kernel<<<heads, dim, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  const dim3 entries(dim, heads);
  covariance_kernel<<<entries, dim, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  if (params.value_norm) {
    const dim3 values(blocks, static_cast<unsigned>(info.kv_heads));
    value_norm_kernel<<<values, kTokens, 0, stream>>>(args);
    LACUNA_CUDA_TRY(cudaGetLastError());
  }
  const int bytes = kCovarianceRows * info.head_dim * static_cast<int>(sizeof(float)) +
                    kTokens * (info.head_dim / 2 + 1) * static_cast<int>(sizeof(__nv_bfloat162));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(exponent_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 tokens(blocks, heads);
  exponent_kernel<<<tokens, kTokens, bytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  expected_state_kernel<<<heads, kSoftmaxThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  importance_kernel<<<tokens, kTokens, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
