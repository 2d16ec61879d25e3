// PyramidKV (arXiv 2406.02069): SnapKV with a capacity that shrinks from the first layer to the last.
#include <algorithm>
#include <cmath>

#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"
#include "attention/methods/snapkv_params.h"

namespace lacuna {

std::int64_t pyramid_capacity(std::int64_t capacity, double beta, const LayerInfo& info,
                              std::int64_t tokens) {
  const auto c = static_cast<double>(capacity);
  if (info.layers <= 1) return capacity;
  double last = c / beta, first = 2 * c - last;
  if (first > static_cast<double>(tokens)) {
    first = static_cast<double>(tokens);
    last = 2 * c - first;
  }
  return std::max<std::int64_t>(1, std::llround(first - (first - last) * info.layer / (info.layers - 1)));
}

namespace {

class PyramidKv final : public Evictor {
 public:
  explicit PyramidKv(const Params& params)
      : request_(attended_request(params)), beta_(params.get_double("beta")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    if (request_.capacity >= input.q.tokens) return {};
    AttendedRequest request = request_;
    request.capacity = pyramid_capacity(request.capacity, beta_, input.info, input.q.tokens);
    return keep_attended(input, counts, request);
  }

 private:
  AttendedRequest request_;
  double beta_;
};

std::vector<ParamSpec> declared() {
  auto params = snapkv_params("Prompt tokens kept per kv head, averaged over the layers");
  params.push_back({.name = "beta",
                    .default_value = 20.0,
                    .help = "The last layer keeps capacity / beta, the first what balances it; 1 is SnapKV",
                    .min = 1,
                    .max = 1000});
  return params;
}

}  // namespace

Method evict_pyramidkv() {
  return {.info = {.name = "pyramidkv",
                   .slot = Slot::kEvict,
                   .summary = "SnapKV with more capacity in the first layers and less in the last.",
                   .reference = "arXiv 2406.02069",
                   .params = declared(),
                   .budget_param = "capacity"},
          .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
            return std::make_unique<PyramidKv>(params);
          },
          .check = check_kernel};
}

}  // namespace lacuna
