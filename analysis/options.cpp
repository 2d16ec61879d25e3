#include "analysis/options.h"

#include <array>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

template <class Enum>
Enum by_name(std::string_view name, const std::vector<std::string>& names, const char* kind,
             const std::string& where) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
  }
  throw_usage("{}: {}", where, unknown_name_message(kind, name, names));
}

const std::vector<std::string> kCostNames{"v1", "v2", "figures", "causal", "measured", "seconds"};
const std::vector<std::string> kTestNames{"welch", "paired-t", "bootstrap", "permutation"};
const std::vector<std::string> kLinkNames{"logit", "log", "identity"};
const std::vector<std::string> kFitNames{"ols", "fractional"};

double parse_number(std::string_view text, const std::string& what) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  LACUNA_REQUIRE(status == std::errc() && end == text.data() + text.size() && std::isfinite(value),
                 "{}: '{}' is not a number", what, text);
  return value;
}

/// "72B", "1.5e9", "500M": parameters. 0 when the text is no count (then it names a model).
double parse_parameters(const std::string& text) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view rest(end, std::size_t(text.data() + text.size() - end));
  if (status != std::errc() || value <= 0) return 0;
  if (rest.empty()) return value;
  if (rest == "K" || rest == "k") return value * 1e3;
  if (rest == "M" || rest == "m") return value * 1e6;
  if (rest == "B" || rest == "b") return value * 1e9;
  if (rest == "T" || rest == "t") return value * 1e12;
  return 0;
}

}  // namespace

std::string_view name_of(CostAxis axis) { return kCostNames[static_cast<std::size_t>(axis)]; }
std::string_view name_of(LossTest test) { return kTestNames[static_cast<std::size_t>(test)]; }
std::string_view name_of(Link link) { return kLinkNames[static_cast<std::size_t>(link)]; }
std::string_view name_of(FitMethod method) { return kFitNames[static_cast<std::size_t>(method)]; }
CostAxis parse_cost_axis(std::string_view name, const std::string& where) {
  return by_name<CostAxis>(name, kCostNames, "cost", where);
}
LossTest parse_test(std::string_view name, const std::string& where) {
  return by_name<LossTest>(name, kTestNames, "test", where);
}
Link parse_link(std::string_view name, const std::string& where) {
  return by_name<Link>(name, kLinkNames, "link", where);
}
FitMethod parse_fit_method(std::string_view name, const std::string& where) {
  return by_name<FitMethod>(name, kFitNames, "fit", where);
}

PredictRequest parse_predict(const std::string& text) {
  const std::string where = "--predict '" + text + "'";
  PredictRequest request;
  bool has_compression = false;
  static const std::vector<std::string> keys{"model", "length", "compression", "sparsity", "task"};
  for (const std::string& part : split(text, ',')) {
    const std::size_t equals = part.find('=');
    LACUNA_REQUIRE(equals != std::string::npos,
                   "{}: expected key=value pairs, as in model=72B,length=256K,compression=20", where);
    const std::string key(trim(std::string_view(part).substr(0, equals)));
    const std::string value(trim(std::string_view(part).substr(equals + 1)));
    if (key == "model") {
      request.model = value;
      request.parameters = parse_parameters(value);
    } else if (key == "length") {
      request.length = double(parse_count(value, where + ": length"));
    } else if (key == "compression") {
      request.compression = parse_number(value, where + ": compression");
      has_compression = true;
    } else if (key == "sparsity") {
      const double sparsity = parse_number(value, where + ": sparsity");
      LACUNA_REQUIRE(sparsity >= 0 && sparsity < 1, "{}: sparsity must lie in [0, 1)", where);
      request.compression = 1 / (1 - sparsity);
      has_compression = true;
    } else if (key == "task") {
      request.task = value;
    } else {
      throw_usage("{}: {}", where, unknown_name_message("key", key, keys));
    }
  }
  LACUNA_REQUIRE(!request.model.empty(),
                 "{}: model=... is missing (a name of the sweep, or a size such as 72B)", where);
  LACUNA_REQUIRE(request.length > 0, "{}: length=... is missing (tokens, such as 128K)", where);
  LACUNA_REQUIRE(has_compression, "{}: compression=... or sparsity=... is missing", where);
  LACUNA_REQUIRE(request.compression >= 1, "{}: compression must be at least 1", where);
  return request;
}

void AnalysisOptions::check() const {
  LACUNA_REQUIRE(alpha > 0 && alpha < 0.5, "--alpha {}: expected between 0 and 0.5", alpha);
  LACUNA_REQUIRE(margin >= 0 && margin < 1, "--margin {}: expected at least 0 and below 1", margin);
  LACUNA_REQUIRE(clip >= 0 && clip < 0.5, "--clip {}: expected at least 0 and below 0.5", clip);
  LACUNA_REQUIRE(confidence > 0.5 && confidence < 1, "--confidence {}: expected between 0.5 and 1",
                 confidence);
  LACUNA_REQUIRE(target_error > 0 && target_error < 1, "--target-error {}: expected between 0 and 1",
                 target_error);
  LACUNA_REQUIRE(resamples >= 100 && resamples <= 1000000, "--resamples {}: expected 100 to 1000000",
                 resamples);
  LACUNA_REQUIRE(!budget || *budget > 0, "--budget {}: expected a positive cost", *budget);
  LACUNA_REQUIRE(margin == 0 || !two_sided,
                 "--two-sided does not go with --margin: non-inferiority is one-sided");
  LACUNA_REQUIRE(fit == FitMethod::kLeastSquares || link == Link::kLogit,
                 "--link {} needs --fit ols: the fractional fit is logit by nature", name_of(link));
}

Json to_json(const AnalysisOptions& o) {
  return {{"cost", name_of(o.cost)},
          {"test", name_of(o.test)},
          {"alpha", o.alpha},
          {"margin", o.margin},
          {"holm", o.holm},
          {"two_sided", o.two_sided},
          {"link", name_of(o.link)},
          {"fit", name_of(o.fit)},
          {"clip", o.clip},
          {"confidence", o.confidence},
          {"target_error", o.target_error},
          {"budget", o.budget ? Json(*o.budget) : Json()},
          {"methods", o.methods},
          {"resamples", o.resamples},
          {"seed", o.seed}};
}

const std::vector<double>& paper_sparsity_grid() {
  static const std::vector<double> grid{0, .33, .5, .6, .7, .8, .87, .9, .93, .95};
  return grid;
}

}  // namespace lacuna
