#include "analysis/scaling_law.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double clip_of(const AnalysisOptions& options, int samples) {
  return options.clip > 0 ? options.clip : 0.5 / std::max(1, samples);
}

/// d score / d link value, for the delta method.
double inverse_slope(Link link, double value) {
  const double score = invert_link(link, value);
  switch (link) {
    case Link::kLogit:
      return score * (1 - score);
    case Link::kLog:
      return score;
    case Link::kIdentity:
      return 1;
  }
  return kNaN;
}

/// The published fits set the offset of qa_quality to zero.
int reference_task(const ResultTable& table, const std::set<int>& tasks) {
  for (const int t : tasks) {
    if (table.tasks[std::size_t(t)].task == "qa_quality") return t;
  }
  return *tasks.begin();
}

/// Tasks whose scores are all 0 or all 1 have no finite offset and teach nothing about the slopes.
void drop_saturated_tasks(const ResultTable& table, LawFit& law) {
  std::set<int> tasks, saturated;
  for (const LawPoint& p : law.points) tasks.insert(p.task);
  for (const int t : tasks) {
    bool zeros = true, ones = true;
    for (const LawPoint& p : law.points) {
      if (p.task != t) continue;
      zeros = zeros && p.score <= 0;
      ones = ones && p.score >= 1;
    }
    if (zeros || ones) saturated.insert(t);
    if (zeros || ones) {
      law.notes.push_back(fmt::format("task {} is left out: every score is {}",
                                      table.tasks[std::size_t(t)].name, zeros ? 0 : 1));
    }
  }
  if (law.link == Link::kIdentity) {  // a constant task is no trouble there
    law.notes.clear();
    return;
  }
  std::erase_if(law.points, [&](const LawPoint& p) { return saturated.count(p.task) > 0; });
}

const char* why_dropped(const std::string& term) {
  if (term == "alpha") return "alpha (model size) cannot be estimated: all models have one size";
  if (term == "beta") return "beta (length) cannot be estimated: there is only one length";
  if (term == "gamma") return "gamma (compression) cannot be estimated: there is only one sparsity";
  return nullptr;
}

void measure(LawFit& law) {
  std::vector<double> observed;
  law.fitted.clear();
  for (const LawPoint& p : law.points) {
    observed.push_back(p.score);
    law.fitted.push_back(invert_link(
        law.link, law.fit.predict(law.row(p.task, p.ln_parameters, p.ln_length, p.ln_compression))));
  }
  law.r_squared = stats::r_squared(observed, law.fitted);
  law.mae = stats::mean_absolute_error(observed, law.fitted);
  law.spearman = stats::spearman(observed, law.fitted);
}

// --- Hold-out
// -------------------------------------------------------------------------------------------------------

double axis_value(const LawPoint& p, const std::string& axis) {
  if (axis == "size") return p.ln_parameters;
  if (axis == "length") return p.ln_length;
  return p.ln_compression;
}

/// Levels of sparsity are told apart by what was asked for; methods with their own parameters by what was
/// measured.
std::vector<bool> held_out(const std::vector<LawPoint>& points, const std::string& axis, std::string* held) {
  std::vector<bool> out(points.size(), false);
  double top = -1;
  if (axis != "compression") {
    for (const LawPoint& p : points) top = std::max(top, axis_value(p, axis));
    for (std::size_t i = 0; i < points.size(); ++i) out[i] = axis_value(points[i], axis) >= top - 1e-9;
    *held = axis == "size" ? format_count(std::exp(top)) + " parameters"
                           : fmt::format("{:.0f} tokens", std::exp(top));
    return out;
  }
  bool any_nominal = false;
  for (const LawPoint& p : points) {
    if (p.method < 0 || std::isnan(p.nominal)) continue;
    any_nominal = true;
    top = std::max(top, p.nominal);
  }
  if (!any_nominal) {
    for (const LawPoint& p : points) top = std::max(top, 1 - std::exp(-p.ln_compression));
  }
  for (std::size_t i = 0; i < points.size(); ++i) {
    const LawPoint& p = points[i];
    if (p.method < 0) continue;
    const bool own = !any_nominal || std::isnan(p.nominal);
    out[i] = own ? 1 - std::exp(-p.ln_compression) >= top - 0.02 : p.nominal >= top - 1e-9;
  }
  *held = fmt::format("sparsity {:.2g}", top);
  return out;
}

HoldOut hold_out(const ResultTable& table, const AnalysisOptions& options, Phase phase, FitMethod method,
                 const std::vector<LawPoint>& points, const std::string& axis) {
  HoldOut h;
  h.phase = phase;
  h.method = method;
  h.axis = axis;
  const std::vector<bool> held = held_out(points, axis, &h.held);
  std::vector<LawPoint> training, tested;
  for (std::size_t i = 0; i < points.size(); ++i) (held[i] ? tested : training).push_back(points[i]);
  std::set<double> values;
  for (const LawPoint& p : training) values.insert(std::round(axis_value(p, axis) * 1e6));
  h.training = training.size();
  if (values.size() < 2) {
    h.impossible =
        fmt::format("needs at least three values of {} (two to fit, one to hold out); there {} {}", axis,
                    values.size() + 1 == 1 ? "is" : "are", values.size() + (tested.empty() ? 0 : 1));
    return h;
  }
  try {
    const LawFit law = fit_law(table, options, phase, method, training);
    h.coefficients = law.coefficients();
    std::vector<double> observed, predicted;
    std::vector<std::vector<double>> task_observed(table.tasks.size()), task_predicted(table.tasks.size());
    for (const LawPoint& p : tested) {
      if (law.task_term[std::size_t(p.task)] == -2) continue;  // not in the training data
      const double value = invert_link(
          law.link, law.fit.predict(law.row(p.task, p.ln_parameters, p.ln_length, p.ln_compression)));
      observed.push_back(p.score);
      predicted.push_back(value);
      task_observed[std::size_t(p.task)].push_back(p.score);
      task_predicted[std::size_t(p.task)].push_back(value);
    }
    h.tested = observed.size();
    if (observed.empty()) {
      h.impossible = "no held-out cell belongs to a task of the fit";
      return h;
    }
    h.r_squared = stats::r_squared(observed, predicted);
    h.mae = stats::mean_absolute_error(observed, predicted);
    h.spearman = stats::spearman(observed, predicted);
    for (std::size_t t = 0; t < table.tasks.size(); ++t) {
      if (task_observed[t].empty()) continue;
      h.tasks.push_back({int(t), task_observed[t].size(),
                         stats::r_squared(task_observed[t], task_predicted[t]),
                         stats::mean_absolute_error(task_observed[t], task_predicted[t]),
                         stats::spearman(task_observed[t], task_predicted[t])});
    }
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kUsage) throw;
    h.impossible = e.what();
  }
  return h;
}

// --- Prediction
// -----------------------------------------------------------------------------------------------------

double resolve_parameters(const ResultTable& table, const PredictRequest& request) {
  for (const ResultModel& model : table.models) {
    if (model.name == request.model && model.shape.parameters > 0) return model.shape.parameters;
  }
  if (request.parameters > 0) return request.parameters;
  if (const auto shape = find_published_shape(request.model)) return shape->parameters;
  std::vector<std::string> names;
  for (const ResultModel& model : table.models) names.push_back(model.name);
  throw_usage("--predict: {}. A size such as 72B works too",
              unknown_name_message("model", request.model, names));
}

/// How far the request lies outside what was fitted, in words; empty when inside.
std::string extrapolation(const LawFit& law, double ln_parameters, double ln_length, double ln_compression) {
  std::string text;
  const auto check = [&](const char* name, double value, double LawPoint::*member, const char* unit) {
    double low = INFINITY, high = -INFINITY;
    for (const LawPoint& p : law.points) {
      low = std::min(low, p.*member);
      high = std::max(high, p.*member);
    }
    if (value > high + 1e-9) {
      text += fmt::format("{}{} is {:.3g} times the largest measured ({}{})", text.empty() ? "" : "; ", name,
                          std::exp(value - high), format_count(std::exp(high)), unit);
    } else if (value < low - 1e-9) {
      text += fmt::format("{}{} is {:.3g} times below the smallest measured ({}{})", text.empty() ? "" : "; ",
                          name, std::exp(low - value), format_count(std::exp(low)), unit);
    }
  };
  check("size", ln_parameters, &LawPoint::ln_parameters, " parameters");
  check("length", ln_length, &LawPoint::ln_length, " tokens");
  check("compression", ln_compression, &LawPoint::ln_compression, "x");
  const LawCoefficients c = law.coefficients();
  const auto unknown = [&](double coefficient, const char* name) {
    if (std::isnan(coefficient))
      text += fmt::format("{}the effect of {} was not estimated", text.empty() ? "" : "; ", name);
  };
  unknown(c.alpha, "size");
  unknown(c.beta, "length");
  unknown(c.gamma, "compression");
  return text.empty() ? text : "extrapolates: " + text;
}

stats::Interval back(Link link, stats::Interval linked) {
  return {invert_link(link, linked.low), invert_link(link, linked.high)};
}
double inside(double score) { return std::clamp(score, 0.0, 1.0); }

void predict(const ResultTable& table, const AnalysisOptions& options, const LawFit& law,
             const PredictRequest& request, ScalingAnalysis& out) {
  Prediction base;
  base.phase = law.phase;
  base.request = request;
  base.parameters = resolve_parameters(table, request);
  const double ln_n = std::log(base.parameters), ln_l = std::log(request.length),
               ln_c = std::log(request.compression);
  base.warning = extrapolation(law, ln_n, ln_l, ln_c);
  const bool least_squares = law.method == FitMethod::kLeastSquares;
  std::vector<int> tasks;
  for (int t = 0; t < int(table.tasks.size()); ++t) {
    if (law.task_term[std::size_t(t)] == -2) continue;
    if (request.task.empty() || table.tasks[std::size_t(t)].name == request.task) tasks.push_back(t);
  }
  if (tasks.empty()) {
    std::vector<std::string> names;
    for (std::size_t t = 0; t < table.tasks.size(); ++t) {
      if (law.task_term[t] != -2) names.push_back(table.tasks[t].name);
    }
    throw_usage("--predict: {}", unknown_name_message("task of the fit", request.task, names));
  }
  const double quantile = least_squares ? stats::t_quantile((1 + options.confidence) / 2, law.fit.df)
                                        : stats::normal_quantile((1 + options.confidence) / 2);
  Eigen::VectorXd gradient = Eigen::VectorXd::Zero(law.fit.coefficients.size());
  double mean_score = 0, noise = 0;
  const double n = double(tasks.size());
  for (const int t : tasks) {
    const Eigen::VectorXd x = law.row(t, ln_n, ln_l, ln_c);
    Prediction p = base;
    p.task = t;
    const double value = law.fit.predict(x), slope = inverse_slope(law.link, value);
    p.score = inside(invert_link(law.link, value));
    p.mean = back(law.link, law.fit.mean_interval(x, options.confidence));
    // Variance of a measured cell about its expected score: on the link scale, or the dispersion times mu (1
    // - mu).
    const double cell_noise =
        least_squares ? slope * slope * law.fit.scale : law.fit.scale * p.score * (1 - p.score);
    if (least_squares) {
      p.observation = back(law.link, law.fit.prediction_interval(x, options.confidence));
    } else {
      const double half = quantile * std::sqrt(slope * slope * x.dot(law.fit.covariance * x) + cell_noise);
      p.observation = {inside(p.score - half), inside(p.score + half)};
    }
    gradient += slope / n * x;
    noise += cell_noise / (n * n);
    mean_score += p.score / n;
    out.predictions.push_back(p);
  }
  if (tasks.size() < 2) return;
  Prediction all = base;  // the mean over tasks, by the delta method
  all.score = mean_score;
  const double variance = gradient.dot(law.fit.covariance * gradient);
  const double half = quantile * std::sqrt(variance), wide = quantile * std::sqrt(variance + noise);
  all.mean = {inside(mean_score - half), inside(mean_score + half)};
  all.observation = {inside(mean_score - wide), inside(mean_score + wide)};
  out.predictions.push_back(all);
}

}  // namespace

double apply_link(Link link, double score, double clip) {
  switch (link) {
    case Link::kLogit: {
      const double s = std::clamp(score, clip, 1 - clip);
      return std::log(s / (1 - s));
    }
    case Link::kLog:
      return std::log(std::max(score, clip));
    case Link::kIdentity:
      return score;
  }
  throw_internal("unknown link");
}

double invert_link(Link link, double value) {
  switch (link) {
    case Link::kLogit:
      return 1 / (1 + std::exp(-value));
    case Link::kLog:
      return std::exp(value);
    case Link::kIdentity:
      return value;
  }
  throw_internal("unknown link");
}

LawCoefficients LawFit::coefficients() const {
  LawCoefficients c{kNaN, kNaN, kNaN, kNaN};
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const double value = fit.coefficients(Eigen::Index(i));
    if (terms[i] == "eps") c.eps = value;
    if (terms[i] == "alpha") c.alpha = value;
    if (terms[i] == "beta") c.beta = value;
    if (terms[i] == "gamma") c.gamma = value;
  }
  return c;
}

Eigen::VectorXd LawFit::row(int task, double ln_parameters, double ln_length, double ln_compression) const {
  Eigen::VectorXd x = Eigen::VectorXd::Zero(Eigen::Index(terms.size()));
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const auto k = Eigen::Index(i);
    if (terms[i] == "eps") x(k) = 1;
    if (terms[i] == "alpha") x(k) = ln_parameters;
    if (terms[i] == "beta") x(k) = ln_length;
    if (terms[i] == "gamma") x(k) = ln_compression;
    if (task_term[std::size_t(task)] == int(i)) x(k) = 1;
  }
  return x;
}

std::vector<LawPoint> law_points(const ResultTable& table, const AnalysisOptions& options, Phase phase) {
  std::vector<LawPoint> points;
  for (const ResultCell& cell : table.cells) {
    if (cell.ok == 0) continue;
    const Phase own = table.phase(cell);
    if (own != Phase::kDense && own != phase) continue;
    const bool dense = own == Phase::kDense;
    const int method = table.method(cell);
    const std::string& name = table.methods[std::size_t(method)];
    if (!dense && !options.methods.empty() &&
        std::find(options.methods.begin(), options.methods.end(), name) == options.methods.end()) {
      continue;
    }
    const double sparsity = dense ? 0 : cell.sparsity;
    const double parameters = table.models[std::size_t(cell.model)].shape.parameters;
    if (!(sparsity < 1) || !(parameters > 0)) continue;
    points.push_back({cell.model, cell.task, dense ? -1 : method, std::log(parameters),
                      std::log(double(cell.length)), -std::log1p(-std::max(0.0, sparsity)), cell.nominal,
                      cell.score_mean, cell.ok});
  }
  return points;
}

LawFit fit_law(const ResultTable& table, const AnalysisOptions& options, Phase phase, FitMethod method,
               std::vector<LawPoint> points) {
  LawFit law;
  law.phase = phase;
  law.method = method;
  law.link = method == FitMethod::kFractional ? Link::kLogit : options.link;
  law.points = std::move(points);
  drop_saturated_tasks(table, law);
  std::set<int> tasks;
  for (const LawPoint& p : law.points) tasks.insert(p.task);
  LACUNA_REQUIRE(!tasks.empty(), "every score is 0 or 1: there is nothing to fit");
  law.reference_task = reference_task(table, tasks);

  std::vector<std::string> all_terms{"eps", "alpha", "beta", "gamma"};
  std::vector<int> all_task_term(table.tasks.size(), -2);
  for (const int t : tasks) {
    all_task_term[std::size_t(t)] = -1;
    if (t == law.reference_task) continue;
    all_task_term[std::size_t(t)] = int(all_terms.size());
    all_terms.push_back("delta " + table.tasks[std::size_t(t)].name);
  }
  const auto n = Eigen::Index(law.points.size());
  Eigen::MatrixXd X = Eigen::MatrixXd::Zero(n, Eigen::Index(all_terms.size()));
  Eigen::VectorXd y(n);
  for (Eigen::Index i = 0; i < n; ++i) {
    const LawPoint& p = law.points[std::size_t(i)];
    X(i, 0) = 1;
    X(i, 1) = p.ln_parameters;
    X(i, 2) = p.ln_length;
    X(i, 3) = p.ln_compression;
    const int term = all_task_term[std::size_t(p.task)];
    if (term >= 0) X(i, term) = 1;
    y(i) = method == FitMethod::kFractional ? std::clamp(p.score, 0.0, 1.0)
                                            : apply_link(law.link, p.score, clip_of(options, p.samples));
  }
  const auto kept = stats::independent_columns(X);
  Eigen::MatrixXd reduced(n, Eigen::Index(kept.size()));
  std::vector<int> position(all_terms.size(), -1);
  for (std::size_t j = 0; j < kept.size(); ++j) {
    reduced.col(Eigen::Index(j)) = X.col(kept[j]);
    position[std::size_t(kept[j])] = int(j);
    law.terms.push_back(all_terms[std::size_t(kept[j])]);
  }
  for (std::size_t j = 0; j < all_terms.size(); ++j) {
    if (position[j] >= 0) continue;
    const char* why = why_dropped(all_terms[j]);
    law.notes.push_back(why != nullptr ? why : all_terms[j] + " cannot be told from the other terms");
  }
  law.task_term.assign(table.tasks.size(), -2);
  for (const int t : tasks) {
    const int term = all_task_term[std::size_t(t)];
    law.task_term[std::size_t(t)] = term < 0                          ? -1
                                    : position[std::size_t(term)] < 0 ? -1
                                                                      : position[std::size_t(term)];
  }
  LACUNA_REQUIRE(n > Eigen::Index(kept.size()), "{} cells are too few for {} coefficients", n, kept.size());
  law.fit = method == FitMethod::kFractional ? stats::fractional_logit(reduced, y)
                                             : stats::least_squares(reduced, y);
  measure(law);
  return law;
}

ScalingAnalysis analyze_scaling(const ResultTable& table, const AnalysisOptions& options) {
  ScalingAnalysis out;
  const FitMethod other =
      options.fit == FitMethod::kLeastSquares ? FitMethod::kFractional : FitMethod::kLeastSquares;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
    const std::vector<LawPoint> points = law_points(table, options, phase);
    const bool any_sparse =
        std::any_of(points.begin(), points.end(), [](const LawPoint& p) { return p.method >= 0; });
    if (!any_sparse) continue;
    for (const FitMethod method : {options.fit, other}) {
      const std::string name = fmt::format("Scaling law, {}, {} fit", name_of(phase), name_of(method));
      try {
        out.fits.push_back(fit_law(table, options, phase, method, points));
        if (method != options.fit) continue;
        for (const std::string& note : out.fits.back().notes) out.notes.push_back(name + ": " + note);
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::kUsage) throw;
        out.notes.push_back(name + ": no fit, " + e.what());
        continue;
      }
      const LawFit law = out.fits.back();
      for (const PredictRequest& request : options.predict) predict(table, options, law, request, out);
      for (const char* axis : {"size", "length", "compression"}) {
        out.hold_outs.push_back(hold_out(table, options, phase, method, points, axis));
        const HoldOut& h = out.hold_outs.back();
        if (!h.impossible.empty())
          out.notes.push_back(fmt::format("{}, hold-out of {}: {}", name, axis, h.impossible));
      }
    }
  }
  if (out.fits.empty()) out.notes.push_back("Scaling law: nothing to fit");
  LACUNA_REQUIRE(options.predict.empty() || !out.predictions.empty(),
                 "--predict: there is no scaling law to predict with ({})",
                 out.notes.empty() ? "no fit" : out.notes.back());
  return out;
}

}  // namespace lacuna
