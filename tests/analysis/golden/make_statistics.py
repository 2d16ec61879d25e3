"""Golden values for tests/analysis/statistics_test.cpp, from SciPy and statsmodels: python3 make_statistics.py"""
import json
import os

import numpy as np
import scipy
import statsmodels
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

rng = np.random.default_rng(20250424)


def flips(d, alternative):
    r = stats.permutation_test((d,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples",
                               n_resamples=np.inf, alternative=alternative, vectorized=True)
    return float(r.pvalue)


tests = []
for case, (a, b) in {
    "continuous": (rng.normal(0.6, 0.2, 40), rng.normal(0.5, 0.3, 40)),
    "binary": (rng.binomial(1, 0.8, 100).astype(float), rng.binomial(1, 0.65, 100).astype(float)),
    "quarters": (rng.integers(0, 5, 25) / 4, rng.integers(0, 4, 25) / 4),
    "small": (np.array([0.1, 0.5, 0.9, 0.4]), np.array([0.2, 0.35, 0.7, 0.3])),
}.items():
    entry = {"name": case, "a": a.tolist(), "b": b.tolist(), "mean": float(np.mean(a)),
             "variance": float(np.var(a, ddof=1)), "sem": float(stats.sem(a))}
    for alternative in ("two-sided", "greater", "less"):
        w = stats.ttest_ind(a, b, equal_var=False, alternative=alternative)
        p = stats.ttest_rel(a, b, alternative=alternative)
        shifted = stats.ttest_1samp(a - b, 0.05, alternative=alternative)
        entry[alternative] = {"welch": [float(w.statistic), float(w.df), float(w.pvalue)],
                              "paired": [float(p.statistic), float(p.df), float(p.pvalue)],
                              "shifted": [float(shifted.statistic), float(shifted.df), float(shifted.pvalue)],
                              "flip_first_12": flips((a - b)[:12], alternative)}
    tests.append(entry)

p = [0.01, 0.04, 0.03, 0.005, 0.2, 0.03]
x = np.array([1, 2, 2, 3, 5, 8, 8, 8, 9, 1.5])
y = np.array([2, 1, 4, 4, 6, 5, 9, 7, 7, 0.5])

n = 60
X = np.column_stack([np.ones(n), rng.integers(0, 2, n), rng.normal(23, 1, n), rng.uniform(9, 12, n), rng.uniform(0, 3, n)])
eta = X @ np.array([-16.92, 0.8, 1.31, -1.15, -1.0])
score = np.clip(1 / (1 + np.exp(-eta - rng.normal(0, 0.7, n))), 0, 1)
logit = np.log(score / (1 - score))
new = np.array([1, 1, 25.0, 12.5, 3.2])


def described(fit, prediction):
    return {"params": fit.params.tolist(), "bse": fit.bse.tolist(), "cov": np.asarray(fit.cov_params()).tolist(),
            "conf_int": fit.conf_int(0.05).tolist(), "pvalues": fit.pvalues.tolist(), "scale": float(fit.scale),
            **prediction}


ols = sm.OLS(logit, X).fit()
frame = ols.get_prediction(new).summary_frame(alpha=0.1)
glm = sm.GLM(score, X, family=sm.families.Binomial()).fit(scale="X2", tol=1e-14, maxiter=200)
regression = {
    "X": X.tolist(), "logit": logit.tolist(), "score": score.tolist(), "new": new.tolist(),
    "ols": described(ols, {"mean": float(frame["mean"].iloc[0]),
                           "mean_ci": [float(frame["mean_ci_lower"].iloc[0]), float(frame["mean_ci_upper"].iloc[0])],
                           "obs_ci": [float(frame["obs_ci_lower"].iloc[0]), float(frame["obs_ci_upper"].iloc[0])],
                           "rsquared": float(ols.rsquared)}),
    "glm": described(glm, {}),
}
golden = {
    "made_with": {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__},
    "tests": tests,
    "holm": {"p": p, "adjusted": multipletests(p, method="holm")[1].tolist()},
    "spearman": {"x": x.tolist(), "y": y.tolist(), "rho": float(stats.spearmanr(x, y).statistic),
                 "pearson": float(stats.pearsonr(x, y).statistic), "ranks": stats.rankdata(x).tolist()},
    "quantile": {"x": np.sort(x).tolist(), "q": [0.0, 0.025, 0.3, 0.5, 0.975, 1.0],
                 "values": np.quantile(x, [0.0, 0.025, 0.3, 0.5, 0.975, 1.0]).tolist()},
    "t_quantile": [[q, df, float(stats.t.ppf(q, df))] for q in (0.025, 0.9, 0.975) for df in (1, 7, 99.5)],
    "regression": regression,
}
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "statistics.json")
with open(path, "w") as f:
    json.dump(golden, f)
    f.write("\n")
