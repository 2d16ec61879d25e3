// The small kernels of a transformer layer: what is neither a matrix product nor attention. One plain struct
// per kernel; all asynchronous on `stream`, none allocates or waits. bfloat16 in and out, float32 inside;
// rows of bfloat16 start at multiples of 16 bytes. Each result is rounded once, where transformers in
// bfloat16 rounds after every step.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/cuda/attention_cuda.h"
#include "core/cuda.h"

namespace lacuna {

/// out row i = scale * table row (ids[i] - first_row), zeros when that is outside the table.
struct EmbedArgs {
  const __nv_bfloat16* table = nullptr;  ///< [rows, hidden], hidden a multiple of 8
  const std::int32_t* ids = nullptr;     ///< [n]
  __nv_bfloat16* out = nullptr;          ///< [n, hidden]
  std::int64_t first_row = 0, rows = 0;
  std::int64_t n = 0;
  int hidden = 0;
  float scale = 1;
};
void launch_embed(const EmbedArgs& args, cudaStream_t stream);

/// out = x / sqrt(mean(x^2) + eps) * weight per row, or out += that. A row's bits do not depend on n.
struct RmsNormArgs {
  const __nv_bfloat16* x = nullptr;  ///< [n, d], d a multiple of 8
  const float* weight = nullptr;     ///< [d]
  __nv_bfloat16* out = nullptr;      ///< [n, d], may be x
  std::int64_t n = 0;
  int d = 0;
  float eps = 0;
  bool add = false;
};
void launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream);

/// out [n, m] = activation(gate_up[:, :m]) * gate_up[:, m:], m a multiple of 8. SiLU, or GELU by tanh.
void launch_gated_activation(const __nv_bfloat16* gate_up, bool gelu, std::int64_t n, std::int64_t m,
                             __nv_bfloat16* out, cudaStream_t stream);

/// y += x.
void launch_add(const __nv_bfloat16* x, __nv_bfloat16* y, std::int64_t count, cudaStream_t stream);

/// y = cap * tanh((y + bias) / cap); bias [columns] or null, cap 0: no cap. y float32 [n, columns].
void launch_finish_logits(float* y, const __nv_bfloat16* bias, float cap, std::int64_t n,
                          std::int64_t columns, cudaStream_t stream);

void launch_to_float(const __nv_bfloat16* from, float* to, std::int64_t count, cudaStream_t stream);
void launch_to_bfloat16(const float* from, __nv_bfloat16* to, std::int64_t count, cudaStream_t stream);

/// RMS norm per head where a weight is given, then rotation of channels (c, c + head_dim / 2), in place.
struct RotateArgs {
  __nv_bfloat16* q = nullptr;  ///< element (h, t, c) at h * head_stride + t * token_stride + c
  __nv_bfloat16* k = nullptr;
  std::int64_t q_head_stride = 0, q_token_stride = 0;
  std::int64_t k_head_stride = 0, k_token_stride = 0;
  int q_heads = 0, k_heads = 0;
  std::int64_t tokens = 0;
  int head_dim = 0;                 ///< 64, 96, 128 or 256; throws for others
  const float* q_weight = nullptr;  ///< [head_dim] or null
  const float* k_weight = nullptr;
  float eps = 0;
  const float* cos = nullptr;  ///< [positions, head_dim / 2]
  const float* sin = nullptr;
  const std::int32_t* positions = nullptr;  ///< [tokens]
};
void launch_norm_and_rotate(const RotateArgs& args, cudaStream_t stream);

/// Where a decode step's new rows go: q to q [rows, q_heads, head_dim], k and v into the newest slot of heads
/// [rows, kv_heads] (nowhere for heads without tokens).
struct NewestSlots {
  const DevicePagedHead* heads = nullptr;
  __nv_bfloat16* pool = nullptr;
  std::int64_t page_elements = 0;
  __nv_bfloat16* q = nullptr;
};
/// Norms and rotates as launch_norm_and_rotate does (without cos: no rotation), to `to` instead of in place,
/// and v, which has k's heads and strides of its own, as it is.
struct RotateToCacheArgs {
  RotateArgs rotate;
  const __nv_bfloat16* v = nullptr;
  std::int64_t v_head_stride = 0, v_token_stride = 0;
  NewestSlots to;
};
void launch_rotate_to_cache(const RotateToCacheArgs& args, cudaStream_t stream);

struct ArgmaxResult {
  float value;
  std::int32_t index;
};
/// Per row of x (float32 [n, columns]) the largest value and its lowest index; NaN anywhere gives NaN and -1.
/// `partial`: [n * argmax_partials(columns)] of workspace.
struct ArgmaxArgs {
  const float* x = nullptr;
  std::int64_t n = 0, columns = 0;
  unsigned long long* partial = nullptr;
  ArgmaxResult* results = nullptr;  ///< [n]
};
int argmax_partials(std::int64_t columns);
void launch_argmax(const ArgmaxArgs& args, cudaStream_t stream);

/// A KvWrite of model/ops.h; begin of its page ids and positions in the arrays below.
struct DeviceKvWrite {
  std::int64_t first_slot = 0, count = 0, row_begin = 0;
  std::int64_t ids_begin = 0;
  std::int64_t positions_begin = -1;  ///< -1: rows row_begin, row_begin + 1, ...
  std::int32_t head = 0;
};
struct StoreKvArgs {
  const __nv_bfloat16* k = nullptr;  ///< element (h, t, c) at h * head_stride + t * token_stride + c
  const __nv_bfloat16* v = nullptr;
  std::int64_t k_head_stride = 0, k_token_stride = 0;
  std::int64_t v_head_stride = 0, v_token_stride = 0;
  int head_dim = 0;                       ///< a multiple of 8
  const DeviceKvWrite* writes = nullptr;  ///< [write_count]
  const std::int32_t* ids = nullptr;
  const std::int32_t* positions = nullptr;
  int write_count = 0;
  std::int64_t most_tokens = 0;  ///< No write has a larger count.
  __nv_bfloat16* pool = nullptr;
  std::int64_t page_elements = 0;
};
void launch_store_kv(const StoreKvArgs& args, cudaStream_t stream);

/// Copies page from_to[2 * i] to page from_to[2 * i + 1]; no page is read and written by one launch.
void launch_copy_pages(const std::int32_t* from_to, int count, __nv_bfloat16* pool,
                       std::int64_t page_elements, cudaStream_t stream);

}  // namespace lacuna
