#include "sweeps/cost_model.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {
namespace {

ModelShape shape(const char* name) { return find_published_shape(name).value(); }
constexpr std::array kQwen{"Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Qwen2.5-72B"};

/// A shape small enough to count by hand: 3 layers, 4 query heads on 2 kv heads of width 5, hidden 7, mlp 11,
/// vocab 13.
ModelShape small() {
  return {.parameters = 0,
          .layers = 3,
          .q_heads = 4,
          .kv_heads = 2,
          .head_dim = 5,
          .hidden = 7,
          .mlp = 11,
          .vocab = 13};
}

// arXiv 2504.17768v2: share of attention in prefill FLOPs, averaged over the four Qwen sizes, the projections
// counted as attention.
TEST(PaperCost, QwenAttentionShares) {
  const std::pair<double, double> published[] = {{16384, 40.2}, {65536, 67.7}, {131072, 79.9}};
  for (const auto& [tokens, percent] : published) {
    double share = 0;
    for (const char* name : kQwen) share += paper_prefill_flops(shape(name), tokens, 1).attention_share() / 4;
    EXPECT_NEAR(100 * share, percent, 0.05) << tokens;
  }
}

// The speed-ups of 5x sparsity: the formula itself, and the variant that reproduces the printed ones.
TEST(PaperCost, FiveFoldSparsitySpeedUps) {
  struct Row {
    double tokens, formula, printed;
  };
  for (const Row& row : {Row{16384, 1.31, 1.5}, Row{65536, 2.00, 2.2}, Row{131072, 2.59, 2.8}}) {
    double formula = 0, figures = 0;
    for (const char* name : kQwen) {
      const ModelShape s = shape(name);
      const double dense = paper_prefill_flops(s, row.tokens, 1).total();
      formula += dense / paper_prefill_flops(s, row.tokens, 0.2).total() / 4;
      figures += dense / paper_prefill_flops(s, row.tokens, 0.2, PaperCost::kFigures).total() / 4;
    }
    EXPECT_NEAR(formula, row.formula, 0.006) << row.tokens;
    EXPECT_NEAR(figures, row.printed, 0.05) << row.tokens;
  }
}

// v2: KV share of decode memory, averaged over the Qwen sizes: 7 -> 35 % at batch 1, 80 -> 97 % at batch 64.
TEST(PaperCost, DecodeCacheShares) {
  const auto share = [](double tokens, double batch) {
    double sum = 0;
    for (const char* name : kQwen) {
      const CostBreakdown c = paper_decode_cost(shape(name), tokens, 1, PaperCost::kFigures, batch);
      sum += 100 * c.attention / c.total() / 4;
    }
    return sum;
  };
  EXPECT_NEAR(share(16384, 1), 7, 0.5);
  EXPECT_NEAR(share(131072, 1), 35, 0.5);
  EXPECT_NEAR(share(16384, 64), 80, 0.5);
  EXPECT_NEAR(share(131072, 64), 97, 0.5);
}

TEST(PaperCost, FormulasByHand) {
  const ModelShape s = small();
  const double L = 10, d = 7, m = 11, V = 13, h = 4, dh = 5, n_kv = 2, N = 3, B = 2, rho = 0.25;
  const CostBreakdown prefill = paper_prefill_flops(s, L, rho, PaperCost::kV2, B);
  EXPECT_DOUBLE_EQ(prefill.embedding, B * 2 * L * d);
  EXPECT_DOUBLE_EQ(prefill.projections, B * N * 2 * L * d * (2 * d + 2 * dh * n_kv));
  EXPECT_DOUBLE_EQ(prefill.attention,
                   B * N * rho * (2 * h * L * L * dh + 3 * h * L * L + 2 * h * L * L * dh));
  EXPECT_DOUBLE_EQ(prefill.mlp, B * N * (6 * L * d * m + 2 * L * m));
  EXPECT_DOUBLE_EQ(prefill.head, B * 2 * L * d * V);
  const CostBreakdown decode = paper_decode_cost(s, L, rho, PaperCost::kV2, B);
  EXPECT_DOUBLE_EQ(decode.total(), N * (4 * d * d + 3 * d * m) + d * V + d + B * N * 2 * L * dh * n_kv * rho);
  // One decode step of v1 is one row of prefill.
  const CostBreakdown step = paper_decode_cost(s, L, rho, PaperCost::kV1, B);
  EXPECT_DOUBLE_EQ(step.total() * L, prefill.total());
  EXPECT_DOUBLE_EQ(paper_vertical_slash_index_flops(s, 64, 8, 3, 5, 2),
                   2 * 3 * 4 * (2 * 5 * 64 * 8 + 5 * 64 * 8 + 2 * 64 * 6 + 1 * (3 + 5)));
  EXPECT_DOUBLE_EQ(paper_quest_index_elements(s, 64, 16, 2), 2.0 * 3 * 2 * 2 * 5 * 64 / 16);
}

TEST(CausalCost, CellsCountedOneByOne) {
  for (int tokens = 1; tokens <= 12; ++tokens) {
    for (int window = 0; window <= 14; ++window) {
      int cells = 0;
      for (int q = 0; q < tokens; ++q) {
        for (int k = 0; k <= q; ++k) cells += window == 0 || k > q - window ? 1 : 0;
      }
      EXPECT_EQ(causal_cells(tokens, window), cells) << tokens << " tokens, window " << window;
    }
  }
}

TEST(CausalCost, SlidingLayersAreCountedAndNeverSparsified) {
  ModelShape s = small();
  s.sliding_layers = 2;
  s.sliding_window = 3;
  const double per_cell = 4.0 * 5 * 4;  // 2 d_h for scores, 2 d_h for the weighted sum, 4 heads
  EXPECT_DOUBLE_EQ(causal_prefill_flops(s, 10, 0).attention, per_cell * (55 + 2 * 27));
  EXPECT_DOUBLE_EQ(causal_prefill_flops(s, 10, 0.8).attention, per_cell * (11 + 2 * 27));
  EXPECT_DOUBLE_EQ(causal_prefill_flops(s, 10, 0).projections, 2.0 * 10 * 3 * 7 * (2 * 20 + 2 * 10));
  EXPECT_DOUBLE_EQ(causal_prefill_flops(s, 10, 0).mlp, 2.0 * 10 * 3 * 3 * 7 * 11);
  EXPECT_DOUBLE_EQ(causal_prefill_flops(s, 10, 0).head, 2.0 * 7 * 13);
  const DecodeCost step = causal_decode_step(s, 10, 0.5, 4, 2);
  EXPECT_DOUBLE_EQ(step.bytes.attention, 4 * 2.0 * 10 * (5 + 2 * 3) * 2);
  EXPECT_DOUBLE_EQ(step.flops.attention, 4 * 4.0 * 20 * (5 + 2 * 3));
  EXPECT_DOUBLE_EQ(step.bytes.projections + step.bytes.mlp + step.bytes.head, 2 * s.weight_elements());
  EXPECT_DOUBLE_EQ(resident_kv_bytes(s, 10, 0.5), 2.0 * 10 * (5 + 2 * 3) * 2);
  EXPECT_DOUBLE_EQ(resident_kv_bytes(s, 2, 0), 2.0 * 10 * (2 + 2 * 2) * 2);  // shorter than the window
}

TEST(CausalCost, SecondsAddUp) {
  const ModelShape s = small();
  const HardwareProfile hw{"test", 1e3, 1e2, 1e4, 0, 0.5};
  const CostBreakdown flops = causal_prefill_flops(s, 10, 0);
  EXPECT_DOUBLE_EQ(prefill_seconds(s, 10, flops, hw),
                   (flops.total() - flops.attention) / 1e3 + flops.attention / 1e2);
  EXPECT_DOUBLE_EQ(prefill_seconds(s, 10, flops, hw, 2), prefill_seconds(s, 10, flops, hw) / 2);
  const DecodeCost step = causal_decode_step(s, 10, 0);
  // Weights, then the cache: one does not hide behind the other.
  const double weights = step.bytes.total() - step.bytes.attention,
               products = step.flops.total() - step.flops.attention;
  EXPECT_DOUBLE_EQ(decode_step_seconds(s, step, hw),
                   std::max(weights / 1e4, products / 1e3) +
                       std::max(step.bytes.attention / 1e4, step.flops.attention / 1e2) + 0.5);
  HardwareProfile measured = hw;
  measured.kv_bytes_per_s = 1;
  measured.layer_overhead_s = 2;
  measured.sequence_overhead_s = 4;
  EXPECT_DOUBLE_EQ(decode_step_seconds(s, step, measured),
                   std::max(weights / 1e4, products / 1e3) + step.bytes.attention + 0.5 + 3 * 2 + 4);
  measured.sparse_attention_flops_per_s["block_sparse"] = 50;
  measured.index_flops_per_s["block_sparse"] = 10;
  const CostBreakdown chosen = causal_prefill_flops(s, 10, 0, 1000);
  EXPECT_DOUBLE_EQ(prefill_seconds(s, 10, chosen, measured, 1, 2, "block_sparse"),
                   (chosen.total() - chosen.attention - 1000) / 1e3 + chosen.attention / 50 + 1000 / 10.0);
  HardwareProfile linked = hw;
  linked.link_bytes_per_s = 100;
  EXPECT_DOUBLE_EQ(prefill_seconds(s, 10, flops, linked, 2) - prefill_seconds(s, 10, flops, hw, 2),
                   2 * 3 * (10 * 7 * 2.0) * 2 * 1 / 2 / 100);
}

TEST(CausalCost, IndexCostOfLookingMethods) {
  const ModelShape s = small();
  EXPECT_EQ(index_cost("dense", s, 1000).prefill_flops, 0);
  EXPECT_EQ(index_cost("streaming", s, 1000).prefill_flops, 0);
  // Quest: 7 pages of 16 for 100 tokens, one product with min and max per channel each.
  EXPECT_DOUBLE_EQ(index_cost("quest", s, 100).decode_flops, 3 * 4 * 7 * 5 * 4.0);
  EXPECT_DOUBLE_EQ(index_cost("quest", s, 100).decode_bytes, 3 * 2 * 2 * 7 * 5 * 2.0);
  // The last 4 of 10 queries see 7 + 8 + 9 + 10 keys.
  EXPECT_DOUBLE_EQ(index_cost("snapkv", s, 10, {.window = 4}).prefill_flops, 3 * 4 * 34 * (2.0 * 5 + 5));
}

// The published parameter counts follow from the shapes (embeddings tied in Gemma, norms and biases left
// out).
TEST(ModelShape, PublishedShapesHaveTheirPublishedSize) {
  for (const std::string& name : published_shape_names()) {
    const ModelShape s = shape(name.c_str());
    s.check(name);
    const bool tied = name.starts_with("Gemma");
    EXPECT_NEAR((s.weight_elements() + (tied ? 0.0 : double(s.hidden) * s.vocab)) / s.parameters, 1, 0.003)
        << name;
  }
  EXPECT_TRUE(find_published_shape("qwen2.5-7b-instruct").has_value());
  EXPECT_FALSE(find_published_shape("qwen2.5-8b").has_value());
}

TEST(ModelShape, BadInputIsNamed) {
  const auto message = [](const char* text) -> std::string {
    try {
      parse_model_shape(parse_json(text, "test"), "models.0.shape");
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      return e.what();
    }
    return "accepted";
  };
  EXPECT_NE(message(R"({"layers": 2})").find("q_heads"), std::string::npos);
  EXPECT_NE(message(R"({"layers":2,"q_heads":3,"kv_heads":2,"head_dim":4,"hidden":4,"mlp":4,"vocab":4})")
                .find("evenly"),
            std::string::npos);
  const ModelShape s = shape("Gemma-3-4B");
  EXPECT_EQ(to_json(parse_model_shape(to_json(s), "again")), to_json(s));
  EXPECT_THROW(parse_paper_cost("v3", "cost"), Error);
  EXPECT_THROW(find_hardware_profile("h100", "hardware"), Error);
  EXPECT_EQ(find_hardware_profile("h100-peak", "hardware").bytes_per_s, 3.35e12);
}

}  // namespace
}  // namespace lacuna
