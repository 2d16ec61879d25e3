#include "runner/commands/analysis_arguments.h"

#include <filesystem>

#include "core/error.h"

namespace lacuna {

AnalysisOptions AnalysisArguments::options() const {
  AnalysisOptions o;
  o.cost = parse_cost_axis(cost, "--cost");
  o.test = parse_test(test, "--test");
  o.link = parse_link(link, "--link");
  o.fit = parse_fit_method(fit, "--fit");
  o.alpha = alpha;
  o.margin = margin;
  o.holm = !no_holm;
  o.two_sided = two_sided;
  o.clip = clip;
  o.confidence = confidence;
  o.target_error = target_error;
  if (budget != 0) o.budget = budget;
  o.resamples = resamples;
  o.seed = seed;
  o.methods = methods;
  for (const std::string& text : predict) o.predict.push_back(parse_predict(text));
  o.check();
  return o;
}

void add_analysis_arguments(CLI::App& verb, AnalysisArguments& a) {
  verb.add_option("DIR", a.folder, "Folder of a sweep (with results.h5), or a results file")->required();
  verb.add_option("--cost", a.cost,
                  "Cost axis: v1, v2, figures (the paper's formulas), causal (cost model of the kernels), "
                  "measured, seconds")
      ->capture_default_str();
  verb.add_option("--budget", a.budget,
                  "Also name the best configuration within this cost, in the unit of the cost axis");
  verb.add_option("--method", a.methods, "Only these methods (repeat or separate by commas)")->delimiter(',');
  verb.add_option("--test", a.test, "Test of a loss against dense: paired-t, welch, bootstrap, permutation")
      ->capture_default_str();
  verb.add_option("--alpha", a.alpha, "Significance level")->capture_default_str();
  verb.add_option("--margin", a.margin,
                  "Non-inferiority margin in score; 0: a level passes when no loss is significant")
      ->capture_default_str();
  verb.add_flag("--no-holm", a.no_holm, "No Holm correction over the levels of a curve");
  verb.add_flag("--two-sided", a.two_sided, "Two-sided test (default: one-sided, for a loss)");
  verb.add_option("--link", a.link, "Link of the scaling law: logit, log, identity")->capture_default_str();
  verb.add_option("--fit", a.fit,
                  "Main fit of the scaling law: ols, fractional (quasi-binomial); both are in the tables")
      ->capture_default_str();
  verb.add_option("--clip", a.clip, "Clip scores to [c, 1 - c] before the link; 0: c = 1/(2n) for n samples")
      ->capture_default_str();
  verb.add_option("--confidence", a.confidence, "Of all intervals")->capture_default_str();
  verb.add_option("--target-error", a.target_error, "Relative error for which the needed budget is found")
      ->capture_default_str();
  verb.add_option("--resamples", a.resamples, "Bootstrap draws and permutations")->capture_default_str();
  verb.add_option("--seed", a.seed, "Seed of these")->capture_default_str();
  // One value per use: the commas belong to the value.
  verb.add_option("--predict", a.predict,
                  "Score of an unmeasured setting, as model=72B,length=256K,compression=20 (repeatable)")
      ->allow_extra_args(false);
}

std::string results_file(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path p(path);
  LACUNA_REQUIRE(fs::exists(p), "{}: no such folder or file", path);
  return fs::is_directory(p) ? (p / "results.h5").string() : path;
}

}  // namespace lacuna
