// attention_prefill_cuda: checks, workspace, tensor maps, choice of kernel.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <vector>

#include "attention/cuda/attention_cuda.h"
#include "attention/cuda/prefill_launch.h"
#include "core/cuda.h"
#include "core/error.h"

namespace lacuna {

namespace {

/// Where the pieces of the workspace are.
struct Layout {
  std::size_t counter = 0, masks = 0, column_k = 0, column_v = 0, total = 0;
  int mask_words = 0, column_pitch = 0;

  Layout(const DeviceTileLists& lists, int head_dim) {
    const auto take = [this](std::size_t bytes) {
      const std::size_t at = total;
      total += (bytes + 255) / 256 * 256;
      return at;
    };
    counter = take(sizeof(int));
    if (lists.dense || lists.max_columns == 0) return;
    mask_words = (lists.max_columns + kTileKeys - 1) / kTileKeys;
    column_pitch = mask_words * kTileKeys;
    const auto heads = static_cast<std::size_t>(lists.heads);
    masks =
        take(heads * static_cast<std::size_t>(lists.row_blocks()) * static_cast<std::size_t>(mask_words) * 8);
    const std::size_t copies =
        heads * static_cast<std::size_t>(column_pitch) * static_cast<std::size_t>(head_dim) * 2;
    column_k = take(copies);
    column_v = take(copies);
  }
};

void check_view(const char* name, const HeadsView& view, int heads, std::int64_t tokens, int head_dim) {
  LACUNA_CHECK(view.device == Device::kCuda && view.dtype == DType::kBF16, "{} must be bfloat16 on CUDA",
               name);
  LACUNA_CHECK(view.heads == heads && view.tokens == tokens && view.head_dim == head_dim,
               "{} is [{}, {}, {}], expected [{}, {}, {}]", name, view.heads, view.tokens, view.head_dim,
               heads, tokens, head_dim);
  LACUNA_CHECK(view.head_stride % 8 == 0 && view.token_stride % 8 == 0 &&
                   reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0,
               "{} must be aligned to 16 bytes in every row (strides {} and {} elements)", name,
               view.head_stride, view.token_stride);
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

/// The driver's function, found at run time so that the program starts without a driver.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    LACUNA_CUDA(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || entry == nullptr)
      throw_library(
          "CUDA: the driver has no cuTensorMapEncodeTiled (CUDA 12.0 or later is needed on Hopper)");
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return function;
}

CUtensorMap make_map(const void* data, int head_dim, std::int64_t tokens, int heads,
                     std::int64_t token_stride, std::int64_t head_stride, int box_tokens) {
  CUtensorMap map{};
  const std::array<cuuint64_t, 3> size{static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(tokens),
                                       static_cast<cuuint64_t>(heads)};
  const std::array<cuuint64_t, 2> stride{static_cast<cuuint64_t>(token_stride) * 2,
                                         static_cast<cuuint64_t>(head_stride) * 2};
  const std::array<cuuint32_t, 3> box{64, static_cast<cuuint32_t>(box_tokens), 1};
  const std::array<cuuint32_t, 3> step{1, 1, 1};
  const CUresult status = encode_tiled()(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(data), size.data(), stride.data(),
      box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw_library("CUDA: cuTensorMapEncodeTiled failed with {} for [{}, {}, {}] strides {}, {}",
                  static_cast<int>(status), heads, tokens, head_dim, head_stride, token_stride);
  return map;
}

[[maybe_unused]] HopperMaps make_maps(const PrefillArgs& args, int head_dim, int keys) {
  const auto tokens = args.tokens;
  HopperMaps maps{};
  maps.q = make_map(args.q, head_dim, tokens, args.q_heads, args.q_token_stride, args.q_head_stride, 64);
  maps.k = make_map(args.k, head_dim, tokens, args.kv_heads, args.k_token_stride, args.k_head_stride, keys);
  maps.v = make_map(args.v, head_dim, tokens, args.kv_heads, args.v_token_stride, args.v_head_stride, keys);
  if (args.column_pitch > 0) {
    const std::int64_t pitch = static_cast<std::int64_t>(args.column_pitch) * head_dim;
    maps.column_k = make_map(args.column_k, head_dim, args.column_pitch, args.q_heads, head_dim, pitch, keys);
    maps.column_v = make_map(args.column_v, head_dim, args.column_pitch, args.q_heads, head_dim, pitch, keys);
  }
  return maps;
}

/// Blocks of so few rows have a kernel of their own.
bool small_row_blocks(const PrefillArgs& args) { return !args.dense && args.lists.row_block <= 32; }

template <int kHeadDim>
void launch(const PrefillArgs& args, bool hopper, cudaStream_t stream) {
  if (small_row_blocks(args)) {
    const int shared = current_cuda_device().max_shared_bytes;
#ifdef LACUNA_HAS_HOPPER
    if (hopper)
      return launch_prefill_rows16_hopper<kHeadDim>(args, make_maps(args, kHeadDim, kPieceKeys), shared,
                                                    stream);
#endif
    if (launch_prefill_rows16<kHeadDim>(args, shared, stream)) return;
  }
  if (!hopper) return launch_prefill_portable<kHeadDim>(args, stream);
#ifdef LACUNA_HAS_HOPPER
  const int items = (args.tokens + 127) / 128 * args.q_heads;
  const int blocks = std::min(items, current_cuda_device().multiprocessors);
  launch_prefill_hopper<kHeadDim>(args, make_maps(args, kHeadDim, hopper_tile_keys(kHeadDim, args.dense)),
                                  blocks, stream);
#endif
}

constexpr std::size_t kArenaAlign = 256;

template <class T, class Memory>
const T* copy_up(const std::vector<T>& from, Memory& memory, cudaStream_t stream) {
  if (from.empty()) return nullptr;
  T* to = memory.template take_array<T>(from.size());
  // From pageable memory: the call returns once the source has been read.
  LACUNA_CUDA(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream));
  return to;
}

template <class Memory>
DeviceTileLists upload_into(const TileLists& lists, Memory& memory, cudaStream_t stream) {
  DeviceTileLists device;
  device.heads = lists.heads;
  device.tokens = lists.tokens;
  device.row_block = lists.row_block;
  device.dense = lists.dense;
  if (lists.dense) return device;
  device.ranges = copy_up(lists.ranges, memory, stream);
  device.range_begin = copy_up(lists.range_begin, memory, stream);
  for (int head = 0; head < lists.heads && !lists.columns.empty(); ++head)
    device.max_columns = std::max(device.max_columns, static_cast<int>(lists.columns_of(head).size()));
  if (device.max_columns > 0) {
    device.columns = copy_up(lists.columns, memory, stream);
    device.column_begin = copy_up(lists.column_begin, memory, stream);
  }
  return device;
}

}  // namespace

std::size_t tile_list_bytes(const TileLists& lists) {
  const auto rounded = [](std::size_t bytes) {
    return (bytes + kArenaAlign - 1) / kArenaAlign * kArenaAlign;
  };
  return rounded(lists.ranges.size() * sizeof(KeyRange)) +
         rounded(lists.range_begin.size() * sizeof(std::int64_t)) +
         rounded(lists.columns.size() * sizeof(std::int32_t)) +
         rounded(lists.column_begin.size() * sizeof(std::int64_t));
}

DeviceTileLists upload_tile_lists(const TileLists& lists, DeviceArena& arena, cudaStream_t stream) {
  return upload_into(lists, arena, stream);
}
DeviceTileLists upload_tile_lists(const TileLists& lists, DeviceScratch& scratch, cudaStream_t stream) {
  return upload_into(lists, scratch, stream);
}

std::size_t prefill_workspace_bytes(const DeviceTileLists& lists, int head_dim) {
  return Layout(lists, head_dim).total;
}

void attention_prefill_cuda(const PrefillInput& input, const DeviceTileLists& lists, const HeadsView& out,
                            CudaWorkspace workspace, cudaStream_t stream, CudaPath path) {
  const LayerInfo& info = input.info;
  const int head_dim = info.head_dim;
  const std::int64_t tokens = input.q.tokens;
  check_view("q", input.q, info.q_heads, tokens, head_dim);
  check_view("k", input.k, info.kv_heads, tokens, head_dim);
  check_view("v", input.v, info.kv_heads, tokens, head_dim);
  check_view("out", out, info.q_heads, tokens, head_dim);
  LACUNA_CHECK(tokens > 0 && tokens <= (1 << 30), "{} tokens", tokens);
  LACUNA_CHECK(lists.tokens == tokens && lists.heads == info.q_heads, "lists are for {} heads and {} tokens",
               lists.heads, lists.tokens);
  const int block = lists.row_block;
  LACUNA_REQUIRE(lists.dense || block == 16 || block == 32 || block == 64 || block == 128,
                 "attention on CUDA: row blocks of {} are not supported; use 16, 32, 64 or 128", block);

  LACUNA_CHECK(lists.dense || reinterpret_cast<std::uintptr_t>(lists.ranges) % 8 == 0,
               "ranges must be aligned to 8");

  const Layout layout(lists, head_dim);
  if (workspace.bytes < layout.total)
    throw_resource("attention prefill needs {} bytes of workspace, got {}", layout.total, workspace.bytes);
  auto* base = static_cast<std::byte*>(workspace.data);

  PrefillArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(input.q.data);
  args.k = static_cast<const __nv_bfloat16*>(input.k.data);
  args.v = static_cast<const __nv_bfloat16*>(input.v.data);
  args.out = static_cast<__nv_bfloat16*>(out.data);
  args.q_head_stride = input.q.head_stride, args.q_token_stride = input.q.token_stride;
  args.k_head_stride = input.k.head_stride, args.k_token_stride = input.k.token_stride;
  args.v_head_stride = input.v.head_stride, args.v_token_stride = input.v.token_stride;
  args.out_head_stride = out.head_stride, args.out_token_stride = out.token_stride;
  args.tokens = static_cast<int>(tokens);
  args.q_heads = info.q_heads;
  args.kv_heads = info.kv_heads;
  args.group = info.q_heads_total / info.kv_heads_total;
  args.head_base = info.q_head_begin;
  args.kv_base = info.kv_head_begin;
  const bool whole = args.q_heads % args.group == 0 && args.head_base % args.group == 0;
  args.pass_heads = whole ? args.group : args.q_heads;
  args.scale = info.scale;
  args.softcap = info.softcap;
  args.window = info.window;
  args.dense = lists.dense;
  args.work_counter = reinterpret_cast<int*>(base + layout.counter);
  if (!lists.dense) {
    args.lists = {lists.ranges, lists.range_begin, lists.columns,      nullptr,
                  nullptr,      layout.mask_words, lists.row_blocks(), block};
    if (layout.mask_words > 0) {
      auto* masks = reinterpret_cast<std::uint64_t*>(base + layout.masks);
      args.lists.column_begin = lists.column_begin;
      args.lists.column_masks = masks;
      args.column_k = reinterpret_cast<__nv_bfloat16*>(base + layout.column_k);
      args.column_v = reinterpret_cast<__nv_bfloat16*>(base + layout.column_v);
      args.column_pitch = layout.column_pitch;
      launch_column_masks(lists, info.window, masks, layout.mask_words, stream);
    }
  }

#ifdef LACUNA_HAS_HOPPER
  const bool can_hopper = current_cuda_device().capability == 90;
#else
  const bool can_hopper = false;
#endif
  LACUNA_REQUIRE(path != CudaPath::kHopper || can_hopper,
                 "the Hopper attention kernel needs a build for sm_90a and compute capability 9.0; this "
                 "device has {}.{}",
                 current_cuda_device().capability / 10, current_cuda_device().capability % 10);
  const bool hopper = path != CudaPath::kPortable && can_hopper;
  if (hopper) LACUNA_CUDA(cudaMemsetAsync(args.work_counter, 0, sizeof(int), stream));
  if (args.column_pitch > 0 && (hopper || small_row_blocks(args)))
    launch_column_gather(args, head_dim, stream);
  switch (head_dim) {
    case 64:
      return launch<64>(args, hopper, stream);
    case 96:
      return launch<96>(args, hopper, stream);
    case 128:
      return launch<128>(args, hopper, stream);
    case 256:
      return launch<256>(args, hopper, stream);
    default:
      throw_usage("attention on CUDA: head_dim {} is not supported; 64, 96, 128 and 256 are", head_dim);
  }
}

}  // namespace lacuna
