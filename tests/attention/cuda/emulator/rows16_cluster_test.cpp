// The kernel for 16- and 32-row blocks in clusters of two, as on Hopper: one warp expands lists, another one
// loads, each block copies half of every piece to both. Only the copies are this file's own.
#include "tests/attention/cuda/emulator/emulator.h"

#include <gtest/gtest.h>

#include "attention/cuda/prefill_rows16.cuh"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

template <class T>
struct SharedCopies {
  const PrefillArgs& args;
  int kv_head, rank;

  void load(unsigned char* to, std::uint64_t* full, int count, int,
            const int (&first)[T::kStagePieces]) const {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    constexpr int kUnits = T::kHeadDim / 8;
    for (int i = lane; i < count * kPieceKeys * kUnits; i += 32) {
      const int piece = i / (kPieceKeys * kUnits), key = i / kUnits % kPieceKeys, unit = i % kUnits;
      for (int value = 0; value < 2; ++value) {
        const int chunk = value * T::kChunks + unit / 8;
        if (chunk % T::kCluster != rank) continue;
        const int token = first[piece] + key;
        const __nv_bfloat16* from = value != 0
                                        ? args.v + kv_head * args.v_head_stride + token * args.v_token_stride
                                        : args.k + kv_head * args.k_head_stride + token * args.k_token_stride;
        unsigned char* at =
            to + piece * T::kPieceBytes + chunk * T::kChunkBytes + key * 128 + ((unit % 8) ^ (key & 7)) * 16;
        for (int block = 0; block < T::kCluster; ++block)
          copy_async_16(emulator::in_block(at, block), from + unit * 8, token < args.tokens);
      }
    }
    __syncwarp();
    // The barrier counts bytes on Hopper; here both loaders arrive at both.
    if (lane < T::kCluster) ring::arrive(static_cast<std::uint64_t*>(emulator::in_block(full, lane)));
  }
  static void release(std::uint64_t* empty, int lane) {
    if (lane < T::kCluster) ring::arrive(static_cast<std::uint64_t*>(emulator::in_block(empty, lane)));
  }
};

template <class T>
void cluster_kernel(const PrefillArgs& args, int stages) {
  using Copies = SharedCopies<T>;
  const Rows16Ring<T> ring = rows16_ring<T>(emulator::shared(), stages);
  const Rows16Item<T> item(args);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ring::init(&ring.shared->full[i], T::kCluster);
      ring::init(&ring.shared->empty[i], T::kWarps * T::kCluster);
    }
    for (int i = 0; i < 2; ++i) {
      ring::init(&ring.shared->bits_full[i], kBitsArrivals);
      ring::init(&ring.shared->bits_empty[i], kBitsArrivals);
    }
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  if (warp < T::kWarps) {
    Rows16Warp<T, Copies>(args, item, ring).run();
  } else if (warp == T::kWarps) {
    const Copies copies{args, kv_head_of(args, item.head), static_cast<int>(blockIdx.x) % T::kCluster};
    Rows16Loader<T, Copies>(args, item, ring, copies).template run<false>();
  } else {
    rows16_expand<T>(args, item, *ring.shared);
  }
  __syncthreads();
}

/// A cluster must give the bits of the portable kernel: what a slice adds, and in which order, is its own
/// list's.
template <int kHeadDim>
void compare(std::int64_t tokens, int row_block, int stages) {
  SCOPED_TRACE(
      fmt::format("head_dim {} tokens {} row_block {} stages {}", kHeadDim, tokens, row_block, stages));
  constexpr int kQHeads = 3, kKvHeads = 1;
  const testing::HeadsOnDevice q(kQHeads, tokens, kHeadDim, true, 1), k(kKvHeads, tokens, kHeadDim, true, 2),
      v(kKvHeads, tokens, kHeadDim, false, 3);
  TileLists lists;
  lists.heads = kQHeads, lists.tokens = tokens, lists.row_block = row_block;
  lists.range_begin.push_back(0);
  std::uint64_t state = 5;
  for (int h = 0; h < kQHeads; ++h)
    for (std::int64_t b = 0; b < lists.row_blocks(); ++b) {
      for (std::int64_t at = 0; at < (b + 1) * row_block; at += 16) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        if ((state >> 33) % (b % 7 == 0 ? 2 : 9) == 0)
          lists.ranges.push_back({static_cast<std::int32_t>(at + state % 3), 14});
      }
      lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
    }
  const testing::ListsOnDevice device(lists);
  PrefillInput input;
  input.q = q.view, input.k = k.view, input.v = v.view;
  LayerInfo& info = input.info;
  info.q_heads = info.q_heads_total = kQHeads;
  info.kv_heads = info.kv_heads_total = kKvHeads;
  info.head_dim = kHeadDim;
  info.scale = 0.1f;
  const auto count = static_cast<std::size_t>(kQHeads * tokens * kHeadDim);
  const testing::DeviceVector<BFloat16> alone(count), together(count);
  HeadsView out = q.view;
  out.token_stride = kHeadDim, out.head_stride = tokens * kHeadDim;
  out.data = alone.data();
  const testing::DeviceVector<std::uint8_t> workspace(prefill_workspace_bytes(device.lists, kHeadDim));
  attention_prefill_cuda(input, device.lists, out, {workspace.data(), workspace.size()}, nullptr,
                         CudaPath::kPortable);

  PrefillArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(q.view.data),
  args.k = static_cast<const __nv_bfloat16*>(k.view.data);
  args.v = static_cast<const __nv_bfloat16*>(v.view.data);
  args.out = reinterpret_cast<__nv_bfloat16*>(together.data());
  args.q_head_stride = q.view.head_stride, args.q_token_stride = q.view.token_stride;
  args.k_head_stride = k.view.head_stride, args.k_token_stride = k.view.token_stride;
  args.v_head_stride = v.view.head_stride, args.v_token_stride = v.view.token_stride;
  args.out_head_stride = out.head_stride, args.out_token_stride = out.token_stride;
  args.tokens = static_cast<int>(tokens);
  args.q_heads = args.group = args.pass_heads = kQHeads, args.kv_heads = kKvHeads;
  args.scale = info.scale;
  args.lists.ranges = device.lists.ranges, args.lists.range_begin = device.lists.range_begin;
  args.lists.row_blocks = lists.row_blocks(), args.lists.row_block = row_block;
  using T = Rows16Traits<kHeadDim, 8, 2, false>;
  constexpr int kRows = T::kRows * T::kCluster;
  const auto clusters = static_cast<unsigned>((tokens + kRows - 1) / kRows * kQHeads);
  emulator::launch(
      clusters * T::kCluster, 32 * T::kWarps + 64, static_cast<std::size_t>(T::shared_bytes(stages)),
      [=] { cluster_kernel<T>(args, stages); }, T::kCluster);
  EXPECT_EQ(std::memcmp(alone.data(), together.data(), count * 2), 0);
}

TEST(PrefillRows16Cluster, GivesThePortableKernelsBits) {
  compare<128>(530, 16, 6);
  compare<128>(290, 32, 2);
  compare<64>(2300, 16, 3);
  compare<96>(33, 16, 6);
  compare<256>(270, 16, 1);
}

}  // namespace
}  // namespace lacuna
