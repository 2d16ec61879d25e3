#include <algorithm>
#include <cmath>
#include <set>

#include "attention/reference/reference.h"
#include "core/error.h"

namespace lacuna::reference {

namespace {

constexpr std::int64_t kPage = kPageTokens;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

std::int64_t tokens_of(const Step& step, int kv) {
  return std::ssize(step.keys[at(kv)]) / step.info.head_dim;
}
const float* key(const Step& step, int kv, std::int64_t t) {
  return step.keys[at(kv)].data() + t * step.info.head_dim;
}

/// Sum over channels of max(q * min, q * max), per page, for one query head.
std::vector<double> quest_bounds(const Step& step, int q_head) {
  const int kv = step.info.kv_head_of(q_head), dim = step.info.head_dim;
  const float* q = step.q + static_cast<std::int64_t>(q_head) * dim;
  std::vector<double> bounds;
  for (std::int64_t begin = 0; begin < tokens_of(step, kv); begin += kPage) {
    double bound = 0;
    for (int c = 0; c < dim; ++c) {
      float low = key(step, kv, begin)[c], high = low;
      for (std::int64_t t = begin; t < std::min(begin + kPage, tokens_of(step, kv)); ++t) {
        low = std::min(low, key(step, kv, t)[c]);
        high = std::max(high, key(step, kv, t)[c]);
      }
      bound += static_cast<double>(std::max(q[c] * low, q[c] * high));
    }
    bounds.push_back(bound);
  }
  return bounds;
}

/// The `pages` best of all but the last, and the last.
PageList best_pages(std::vector<double> scores, std::int64_t pages) {
  const auto last = static_cast<std::int32_t>(scores.size()) - 1;
  scores.pop_back();
  PageList kept = top(scores, pages);
  kept.push_back(last);
  return kept;
}

std::vector<PageList> quest(const Params& params, const Step& step) {
  const int group = step.info.q_heads / step.info.kv_heads;
  std::vector<PageList> lists;
  for (int h = 0; h < step.info.q_heads; ++h) {
    auto scores = quest_bounds(step, h);
    if (params.get_bool("share_pages")) {
      if (h % group != 0) continue;
      for (int g = 1; g < group; ++g) {
        const auto more = quest_bounds(step, h + g);
        for (std::size_t p = 0; p < scores.size(); ++p) scores[p] += more[p];
      }
    }
    lists.push_back(best_pages(scores, params.get_int("budget") / kPage));
  }
  return lists;
}

/// Mean over the query heads of a kv head of their softmax over the tokens of `pages`, summed by page.
std::vector<double> page_mass(const Step& step, int kv, const PageList& pages) {
  const int group = step.info.q_heads / step.info.kv_heads;
  std::vector<double> mass(pages.size());
  for (int h = kv * group; h < (kv + 1) * group; ++h) {
    std::vector<double> weight(pages.size());
    double peak = -INFINITY, total = 0;
    const auto score_of = [&](std::int64_t t) {
      return static_cast<double>(
          score(step.q + static_cast<std::int64_t>(h) * step.info.head_dim, key(step, kv, t), step.info));
    };
    const auto for_tokens = [&](const auto& body) {
      for (std::size_t i = 0; i < pages.size(); ++i) {
        const std::int64_t begin = pages[i] * kPage;
        for (std::int64_t t = begin; t < std::min(begin + kPage, tokens_of(step, kv)); ++t)
          body(i, score_of(t));
      }
    };
    for_tokens([&](std::size_t, double s) { peak = std::max(peak, s); });
    for_tokens([&](std::size_t i, double s) {
      weight[i] += std::exp(s - peak);
      total += std::exp(s - peak);
    });
    for (std::size_t i = 0; i < pages.size(); ++i) mass[i] += weight[i] / total / group;
  }
  return mass;
}

/// The fewest of `pages` with a mass of at least p, and the last page of the cache.
PageList fewest(const PageList& pages, const std::vector<double>& mass, double p) {
  auto sorted = mass;
  std::sort(sorted.rbegin(), sorted.rend());
  std::int64_t count = 0;
  for (double sum = 0; count < std::ssize(sorted) && sum < p;) sum += sorted[at(count++)];
  std::set<std::int32_t> kept = {pages.back()};
  for (const auto i : top(mass, count)) kept.insert(pages[at(i)]);
  return {kept.begin(), kept.end()};
}

}  // namespace

std::vector<PageList> decode_pages(const std::string& method, const Params& params, const Step& step) {
  if (method == "quest") return quest(params, step);
  std::vector<PageList> lists;
  for (int kv = 0; kv < step.info.kv_heads; ++kv) {
    const std::int64_t tokens = tokens_of(step, kv), count = (tokens + kPage - 1) / kPage;
    PageList all;
    for (std::int32_t p = 0; p < count; ++p) all.push_back(p);
    if (method == "dense") {
      lists.push_back(all);
    } else if (method == "oracle_top_k") {
      lists.push_back(best_pages(page_mass(step, kv, all), params.get_int("budget") / kPage));
    } else if (method == "oracle_top_p") {
      lists.push_back(fewest(all, page_mass(step, kv, all), params.get_double("top_p")));
    } else if (method == "streaming") {
      PageList kept;
      for (const auto p : all) {
        const bool sink = p * kPage < params.get_int("sinks");
        const bool local = (p + 1) * kPage > tokens - params.get_int("window");
        if (sink || local) kept.push_back(p);
      }
      lists.push_back(kept);
    } else if (method == "twilight") {
      const int group = step.info.q_heads / step.info.kv_heads;
      auto scores = quest_bounds(step, kv * group);
      for (int g = 1; g < group; ++g) {
        const auto more = quest_bounds(step, kv * group + g);
        for (std::size_t p = 0; p < scores.size(); ++p) scores[p] += more[p];
      }
      const PageList proposed = best_pages(scores, params.get_int("budget") / kPage);
      lists.push_back(fewest(proposed, page_mass(step, kv, proposed), params.get_double("top_p")));
    } else {
      throw_internal("no reference for the decode method {}", method);
    }
  }
  return lists;
}

}  // namespace lacuna::reference
