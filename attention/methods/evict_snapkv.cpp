// SnapKV (arXiv 2404.14469; rules of arXiv 2504.17768): the prompt tokens that its last queries attend to
// stay.
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"
#include "attention/methods/snapkv_params.h"

namespace lacuna {

namespace {

class SnapKv final : public Evictor {
 public:
  explicit SnapKv(const Params& params) : request_(attended_request(params)) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    return keep_attended(input, counts, request_);
  }

 private:
  AttendedRequest request_;
};

}  // namespace

Method evict_snapkv() {
  return {
      .info = {.name = "snapkv",
               .slot = Slot::kEvict,
               .summary = "Keeps, per kv head, the prompt tokens to which the last queries attend most.",
               .reference = "arXiv 2404.14469",
               .params = snapkv_params("Prompt tokens kept per kv head; `first` and `last` are among them"),
               .budget_param = "capacity"},
      .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
        return std::make_unique<SnapKv>(params);
      },
      .check = check_kernel};
}

}  // namespace lacuna
