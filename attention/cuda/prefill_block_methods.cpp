// Selectors that score (query block, key block) pairs and keep the best per query block: oracles and
// xattention.
#include <algorithm>
#include <cmath>

#include "attention/cuda/method_util.h"
#include "attention/methods/common.h"

namespace lacuna {

namespace {

struct BlockRule {
  int block = 64, stride = 1;
  std::int64_t count = 0;  ///< that many of the best, or, when mass >= 0, those that hold so much
  double mass = -1;
  bool keep_first = false;
};

class BlockSelector final : public DeviceSelector {
 public:
  BlockSelector(const BlockRule& rule, const CudaContext& context) : DeviceSelector(context), rule_(rule) {}

  DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const override {
    const IndexSpan span(context_, counts);
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens, blocks = (tokens + rule_.block - 1) / rule_.block;
    BlockBits chosen{
        .words = (blocks + 31) / 32, .heads = info.q_heads, .tokens = tokens, .block = rule_.block};
    auto* bits = take<std::uint32_t>(context_, info.q_heads * blocks * chosen.words);
    chosen.bits = bits;
    int* not_finite = take_flags(context_, info.q_heads);
    choose(input, blocks, bits, chosen.words, not_finite);
    counts.index_flops += cost(info, static_cast<double>(tokens));
    const std::int64_t most = rule_.mass >= 0 ? blocks : rule_.count + 2;
    return make_lists(context_, info,
                      {.tokens = tokens,
                       .row_block = rule_.block,
                       .max_ranges = info.q_heads * most_block_ranges(blocks, most)},
                      not_finite,
                      [&](const TileListsOut& out) { block_lists_cuda(chosen, out, context_.stream); });
  }

 private:
  /// Strip by strip: weights of blocks, then the choice among them.
  void choose(const PrefillInput& input, std::int64_t blocks, std::uint32_t* bits, std::int64_t words,
              int* not_finite) const {
    const int heads = input.info.q_heads;
    const int per_block = rule_.block / rule_.stride;
    const std::int64_t rows = block_strip_rows(heads, blocks, per_block);
    BlockMassParams mass;
    mass.stride = rule_.stride;
    mass.per_block = per_block;
    mass.mass = take<float>(context_, heads * rows * blocks);
    mass.mass_stride = blocks;
    mass.not_finite = not_finite;
    BlockChoiceParams choice;
    choice.scores = mass.mass;
    choice.score_stride = blocks;
    choice.count =
        static_cast<int>(std::min(blocks, std::max<std::int64_t>(rule_.count, rule_.keep_first ? 2 : 1)));
    choice.mass = rule_.mass;
    choice.force_first = rule_.keep_first;
    choice.force_last = true;
    choice.bits = bits;
    choice.row_blocks = static_cast<int>(blocks);
    choice.words = words;
    for (std::int64_t first = 0; first < blocks; first += rows) {
      mass.first = choice.first_row = static_cast<int>(first);
      mass.count = static_cast<int>(std::min(rows, blocks - first));
      choice.strip_rows = mass.count;
      block_mass_cuda(input, mass, context_.stream);
      choose_blocks_cuda(choice, heads, mass.count, context_.stream);
    }
  }

  double cost(const LayerInfo& info, double tokens) const {
    if (rule_.stride == 1)
      return info.q_heads * tokens * (tokens + rule_.block) / 2 * (2.0 * info.head_dim + 5.0);
    const double groups = std::ceil(tokens / rule_.stride);
    return info.q_heads * groups * (groups + 1) / 2 * (2.0 * rule_.stride * info.head_dim + 5.0);
  }

  BlockRule rule_;
};

}  // namespace

std::int64_t block_strip_rows(int heads, std::int64_t blocks, int per_block) {
  constexpr std::int64_t kStripBytes = std::int64_t{64} << 20;
  const std::int64_t least = kMassRows / per_block;  // strips begin at multiples of this
  const std::int64_t fitting = kStripBytes / (heads * blocks * static_cast<std::int64_t>(sizeof(float)));
  return std::min(blocks, std::max<std::int64_t>(1, fitting / least) * least);
}

std::unique_ptr<CudaPrefillSelector> make_cuda_block_selector(const MethodSpec& spec,
                                                              const CudaContext& context) {
  const Params& params = spec.params;
  BlockRule rule{.block = static_cast<int>(params.get_int("block"))};
  if (spec.method == "xattention") {
    rule.stride = static_cast<int>(params.get_int("stride"));
    rule.mass = params.get_double("threshold");
    rule.keep_first = true;
  } else if (spec.method == "oracle_top_k") {
    rule.count = params.get_int("top_k");
  } else {
    LACUNA_CHECK(spec.method == "oracle_top_p", "prefill {} chooses no blocks", spec.method);
    rule.mass = params.get_double("top_p");
  }
  return std::make_unique<BlockSelector>(rule, context);
}

}  // namespace lacuna
