// attention_decode_cuda: checks, workspace and the shape of the grid.
#include <cuda_runtime.h>

#include <algorithm>

#include "attention/cuda/attention_cuda.h"
#include "attention/cuda/decode_launch.h"
#include "core/cuda.h"
#include "core/error.h"

namespace lacuna {

namespace {

/// Everything that follows from the host fields of DecodeParams.
struct Plan {
  int group, parts, slots, third, runs, rows;
  std::size_t state, output, total;

  explicit Plan(const DecodeParams& params) {
    const LayerInfo& info = params.info;
    group = info.q_heads_total / info.kv_heads_total;
    parts = (std::min(group, info.q_heads) + kDecodeRows - 1) / kDecodeRows;
    slots = params.lists_per_q_head ? info.q_heads : info.kv_heads * parts;
    rows = params.lists_per_q_head ? 1 : std::min({group, info.q_heads, kDecodeRows});
    // One block per multiprocessor, three times. Not a function of the batch, so that a sequence's bits are
    // not either.
    third = std::clamp((current_cuda_device().multiprocessors + slots - 1) / slots, 1, kDecodeMaxRuns / 8);
    const std::int64_t pages =
        std::clamp<std::int64_t>((params.max_tokens + kPageTokens - 1) / kPageTokens, 1, INT32_MAX / 2);
    // The most runs that DecodeCut makes of any number of pages up to this one.
    const std::int64_t shortest = (pages + kDecodeMinRunPages - 1) / kDecodeMinRunPages;
    const bool many = params.lists == nullptr && pages > 3 * third * kDecodeEnoughRunPages;
    runs = static_cast<int>(many ? 8 * third : std::min<std::int64_t>(3 * third, shortest));
    const auto align = [](std::size_t bytes) { return (bytes + 255) / 256 * 256; };
    const std::size_t partials = static_cast<std::size_t>(params.batch) * static_cast<std::size_t>(slots) *
                                 static_cast<std::size_t>(runs) * static_cast<std::size_t>(rows);
    state = align(partials * sizeof(float2));
    output = align(partials * static_cast<std::size_t>(info.head_dim) * sizeof(float));
    total = state + output;
  }
};

}  // namespace

std::size_t decode_workspace_bytes(const DecodeParams& params) { return Plan(params).total; }

void attention_decode_cuda(const DecodeParams& params, CudaWorkspace workspace, cudaStream_t stream) {
  const LayerInfo& info = params.info;
  const Plan plan(params);
  LACUNA_CHECK(params.batch > 0 && params.batch <= 65535, "batch of {}", params.batch);
  LACUNA_CHECK(params.page_elements >= 2 * kPageTokens * info.head_dim && params.page_elements % 8 == 0,
               "pages of {} elements for head_dim {}", params.page_elements, info.head_dim);
  LACUNA_CHECK(params.lists == nullptr || params.list_counts != nullptr, "page lists without counts");
  if (workspace.bytes < plan.total)
    throw_resource("attention decode needs {} bytes of workspace, got {}", plan.total, workspace.bytes);
  auto* base = static_cast<std::byte*>(workspace.data);

  DecodeArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(params.q);
  args.out = static_cast<__nv_bfloat16*>(params.out);
  args.pool = static_cast<const __nv_bfloat16*>(params.pool);
  args.page_elements = params.page_elements;
  args.heads = params.heads;
  args.lists = params.lists;
  args.list_counts = params.list_counts;
  args.list_stride = params.list_stride;
  args.lists_per_q_head = params.lists_per_q_head;
  args.q_heads = info.q_heads;
  args.kv_heads = info.kv_heads;
  args.group = plan.group;
  args.head_base = info.q_head_begin;
  args.kv_base = info.kv_head_begin;
  args.parts = plan.parts;
  args.third = plan.third;
  args.runs = plan.runs;
  args.rows = plan.rows;
  args.scale = info.scale;
  args.softcap = info.softcap;
  args.window = info.window;
  args.settled = params.settled;
  args.partial_state = reinterpret_cast<float2*>(base);
  args.partial_o = reinterpret_cast<float*>(base + plan.state);
  switch (info.head_dim) {
    case 64:
      launch_decode<64>(args, params.batch, plan.slots, stream);
      break;
    case 96:
      launch_decode<96>(args, params.batch, plan.slots, stream);
      break;
    case 128:
      launch_decode<128>(args, params.batch, plan.slots, stream);
      break;
    case 256:
      launch_decode<256>(args, params.batch, plan.slots, stream);
      break;
    default:
      throw_usage("attention on CUDA: head_dim {} is not supported; 64, 96, 128 and 256 are", info.head_dim);
  }
  if (plan.runs > 1) launch_combine(args, info.head_dim, params.batch, stream);
}

}  // namespace lacuna
