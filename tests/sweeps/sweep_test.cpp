// Sweep files: what is accepted, what is refused and with which words, and the grids of the shipped ones.
#include "sweeps/sweep.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "sweeps/cells.h"

namespace lacuna {
namespace {

const std::string kBase = R"(name: t
preset: mini
models:
  - {name: a, path: /m/a}
  - {name: b, path: /m/b, tp: 2}
tasks: [ruler_niah, {task: ruler_vt, name: vt, samples: 3}]
lengths: [512, 1K]
samples: 5
strategies:
  - dense
  - {decode: quest, sparsity: [0.5, 0.9]}
)";

Sweep parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  Document document = Document::parse(text, "t.yaml");
  for (const auto& o : overrides) document.apply_override(o);
  return parse_sweep(document);
}

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    expand(parse(text, overrides));
    return "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage) << e.what();
    return e.what();
  }
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Sweep, Reads) {
  const Sweep s = parse(kBase);
  EXPECT_EQ(s.name, "t");
  ASSERT_EQ(s.models.size(), 2U);
  EXPECT_EQ(s.models[1].tp, 2);
  EXPECT_EQ(s.lengths, (std::vector<std::int64_t>{512, 1024}));
  EXPECT_EQ(s.tasks[0].params.get_string("preset"), "mini");
  EXPECT_EQ(s.tasks[1].name, "vt");
  ASSERT_EQ(s.strategies.size(), 2U);
  EXPECT_EQ(s.strategies[1].name, "quest");
  const Grid g = expand(s);
  EXPECT_EQ(g.cells.size(), 2U * 2 * 2 * 3);
  EXPECT_EQ(g.samples(), 2 * 2 * 3 * (5 + 3));
  EXPECT_EQ(g.groups.size(), 8U) << "dense and quest share the prefill";
  EXPECT_EQ(g.sparsities, (std::vector<double>{0, 0.5, 0.9}));
}

TEST(Sweep, CanonicalFormReadsBackToTheSameCells) {
  for (const char* file : {"demo", "mini", "smoke", "paper-v1", "paper-v2"}) {
    const Sweep s = load_sweep(fmt::format("sweeps/{}.yaml", file));
    const Sweep again = parse_sweep(Document::parse(s.to_json().dump(), "sweep.json"));
    EXPECT_EQ(s.to_json(), again.to_json()) << file;
    EXPECT_EQ(s.hash(), again.hash());
    const Grid a = expand(s), b = expand(again);
    ASSERT_EQ(a.cells.size(), b.cells.size());
    for (std::size_t i = 0; i < a.cells.size(); ++i) {
      ASSERT_EQ(a.cells[i].key, b.cells[i].key) << file << " " << cell_name(s, a, a.cells[i]);
    }
  }
}

TEST(Sweep, ErrorsSayWhereAndWhat) {
  const std::vector<std::array<std::string, 3>> table = {
      {"samples: 5", "sampels: 5", "t.yaml:8:1: unknown setting 'sampels'; did you mean 'samples'?"},
      {"samples: 5", "samples: -1", "t.yaml:8:1: samples: -1 is out of range"},
      {"samples: 5", "samples: many", "samples: 'many' is not a count"},
      {"samples: 5", "samples: [1]", "samples: [1] is not an integer"},
      {"samples: 5", "samples: 5\nsamples: 6", "t.yaml:9:1: 'samples' is given twice"},
      {"samples: 5", "samples: {a: [", "t.yaml:"},
      {"tp: 2", "tpp: 2", "t.yaml:5:27: unknown setting 'tpp'; did you mean 'tp'?"},
      {"tp: 2", "tp: 0", "t.yaml:5:27: tp: 0 is out of range"},
      {"tp: 2", "device: gpu", "unknown device 'gpu'"},
      {"name: b", "name: a", "the name 'a' is used twice"},
      {"path: /m/b", "chat: none", "t.yaml:5:5: 'path' is missing"},
      {"path: /m/b", "path: \"${NOT_SET_ANYWHERE}/b\"",
       "the environment variable NOT_SET_ANYWHERE is not set"},
      {"ruler_niah", "ruler_nia", "did you mean 'ruler_niah'?"},
      {"samples: 3}", "smaples: 3}", "unknown setting 'smaples'; did you mean 'samples'?"},
      {"samples: 3}", "lengths: [256]}", "256 is not one of the sweep's lengths"},
      {"samples: 3}", "params: {num_chian: 2}}", "unknown parameter 'num_chian'"},
      {"lengths: [512, 1K]", "", "'lengths' is missing"},
      {"lengths: [512, 1K]", "lengths: []", "the list is empty"},
      {"lengths: [512, 1K]", "lengths: [512, 512]", "512 is given twice"},
      {"decode: quest", "decode: qest", "did you mean 'quest'?"},
      {"decode: quest", "decod: quest", "unknown setting 'decod'; did you mean 'decode'?"},
      {"decode: quest", "decode: {quest: {bugdet: 16}}", "bugdet"},
      {"decode: quest", "decode: {quest: {budget: 512}}",
       "the budget is given among the method's own parameters too"},
      {"decode: quest", "decode: dense", "a dense strategy takes no budget"},
      {"[0.5, 0.9]", "[0.5, 1.5]", "1.5 is out of range"},
      {"[0.5, 0.9]", "[0.5, 0.5]", "0.5 is given twice"},
      {"[0.5, 0.9]", "[0.5], tokens: [16]", "give sparsity or tokens, not both"},
      {"[0.5, 0.9]", "[0.5], models: [c]", "unknown name 'c'"},
      {"  - dense", "  - dense\n  - dense", "the strategy 'dense' is given twice"},
      {"preset: mini", "preset: huge", "huge"},
  };
  for (const auto& [from, to, expected] : table) {
    const std::string message = error_of(replaced(kBase, from, to));
    EXPECT_NE(message.find(expected), std::string::npos)
        << to << "\n  gives: " << message << "\n  wants: " << expected;
  }
}

TEST(Sweep, OverridesReplaceListsEntriesAndPlainValues) {
  const Sweep s =
      parse(kBase, {"samples=7", "lengths=256,512,4K", "models.1.path=/x", "models.a.tp=4", "tasks=ruler_cwe",
                    "strategies.1.sparsity=0.8", "models.b.rope={rope_type: linear, factor: 2}"});
  EXPECT_EQ(s.samples, 7);
  EXPECT_EQ(s.lengths.back(), 4096);
  EXPECT_EQ(s.models[1].path, "/x");
  EXPECT_EQ(s.models[0].tp, 4);
  EXPECT_EQ(s.tasks.size(), 1U);
  EXPECT_EQ(s.strategies[1].levels.size(), 1U);
  EXPECT_EQ(s.models[1].rope["factor"], 2);
  const std::vector<std::pair<std::string, std::string>> refused = {
      {"samples", "expected key=value"},
      {"models.7.path=/x", "command line 'models.7.path=/x': there is no entry 7; the list has 2"},
      {"models.c.path=/x", "unknown entry 'c'"},
      {"models.0.pth=/x", "command line 'models.0.pth=/x': unknown setting 'pth'; did you mean 'path'?"},
      {"samples.x=1", "'samples' is a plain value"},
      {"samples=few", "'few' is not a count"},
      {"lengths=1,2,3", "out of range"},
      {"a..b=1", "empty name between dots"},
  };
  for (const auto& [text, expected] : refused) {
    const std::string message = error_of(kBase, {text});
    EXPECT_NE(message.find(expected), std::string::npos) << text << " gives: " << message;
  }
}

TEST(Sweep, IncludesMergeAndPathsBelongToTheFileThatStatesThem) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("lacuna_include_{}", ::getpid());
  std::filesystem::create_directories(folder / "sub");
  std::ofstream(folder / "sub/base.yaml") << replaced(kBase, "/m/a", "../models/a");
  std::ofstream(folder / "top.yaml") << "include: sub/base.yaml\nname: top\nsamples: 9\n";
  std::ofstream(folder / "loop.yaml") << "include: loop.yaml\n";
  std::ofstream(folder / "gone.yaml") << "name: x\ninclude: [nothing.yaml]\n";
  std::ofstream(folder / "bad.yaml") << "include: sub/base.yaml\ntasks: [nope]\n";
  const Sweep s = load_sweep((folder / "top.yaml").string());
  EXPECT_EQ(s.name, "top");
  EXPECT_EQ(s.samples, 9);
  EXPECT_EQ(s.models[0].path, (folder / "models/a").string());
  const auto message = [&](const char* file) {
    try {
      load_sweep((folder / file).string());
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message("loop.yaml").find("a circle?"), std::string::npos) << message("loop.yaml");
  EXPECT_NE(message("gone.yaml").find("gone.yaml:2:1: include: "), std::string::npos) << message("gone.yaml");
  EXPECT_NE(message("bad.yaml").find("bad.yaml:2:"), std::string::npos) << message("bad.yaml");
  std::filesystem::remove_all(folder);
}

TEST(Sweep, HostileDocumentsAreErrors) {
  EXPECT_NE(error_of(std::string(100000, '[')).find("t.yaml"), std::string::npos);
  std::string bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n";
  for (char c = 'b'; c < 'i'; ++c)
    bomb += fmt::format("{0}: &{0} [*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1},*{1}]\n", c,
                        static_cast<char>(c - 1));
  EXPECT_NE(error_of(bomb).find("more than 1000000 values"), std::string::npos);
  EXPECT_NE(error_of("? [1, 2]\n: 3\n").find("a key must be a plain text"), std::string::npos);
  EXPECT_NE(error_of("").find("expected settings"), std::string::npos);
  EXPECT_NE(error_of("- 1\n").find("expected settings"), std::string::npos);
}

TEST(Cells, ProductsCombineAndTheDenseCornerTakesNoLevel) {
  const Sweep s =
      parse(replaced(kBase, "{decode: quest, sparsity: [0.5, 0.9]}",
                     "{product: {evict: [none, snapkv], decode: [dense, quest]}, tokens: [160, 256]}"),
            {"strategies.0=streaming"});
  const Grid g = expand(
      parse(replaced(kBase, "  - dense\n  - {decode: quest, sparsity: [0.5, 0.9]}",
                     "  - {product: {evict: [none, snapkv], decode: [dense, quest]}, tokens: [160, 256]}")));
  std::set<std::string> names;
  for (const auto& strategy : g.strategies) names.insert(strategy.name);
  EXPECT_EQ(names, (std::set<std::string>{"dense", "quest tokens=160", "quest tokens=256",
                                          "snapkv tokens=160", "snapkv tokens=256", "snapkv+quest tokens=160",
                                          "snapkv+quest tokens=256"}));
  EXPECT_EQ(s.strategies.size(), 5U);
}

TEST(Cells, KeysDependOnWhatDecidesResultsAndOnNothingElse) {
  const auto keys = [](const std::vector<std::string>& overrides) {
    std::set<std::uint64_t> set;
    for (const auto& cell : expand(parse(kBase, overrides)).cells) set.insert(cell.key);
    return set;
  };
  const auto base = keys({});
  EXPECT_EQ(base.size(), 24U);
  for (const char* same :
       {"samples=9", "models.0.tp=8", "models.0.path=/elsewhere", "name=other", "description=x"})
    EXPECT_EQ(keys({same}), base) << same;
  for (const char* other : {"seed=1", "max_new_tokens=5", "chat=none", "preset=paper"}) {
    for (const auto key : keys({other})) EXPECT_FALSE(base.contains(key)) << other;
  }
  // Added cells leave the others as they are.
  const auto more = keys({"lengths=512,1024,2048"});
  EXPECT_TRUE(std::ranges::includes(more, base));
}

TEST(Cells, RopeOverridesDependOnTheLength) {
  const Sweep s = parse(
      kBase,
      {"models.0.rope={rope_type: yarn, factor: auto, original_max_position_embeddings: 600, above: 600}",
       "max_new_tokens=88"});
  EXPECT_EQ(rope_for(s.models[0], 512, 88), "");
  const Json rope = Json::parse(rope_for(s.models[0], 1024, 88));
  EXPECT_DOUBLE_EQ(rope["factor"].get<double>(), (1024 + 88) / 600.0);
  EXPECT_FALSE(rope.contains("above"));
  EXPECT_EQ(expand(s).loads.size(), 3U) << "model a plain and stretched, model b";
}

TEST(Cells, SplittingKeepsEveryCellOnce) {
  Grid g = expand(load_sweep("sweeps/paper-v1.yaml"));
  split_groups(g, [](const JobGroup&) { return 7; });
  std::vector<int> seen(g.cells.size(), 0);
  for (const auto& group : g.groups) {
    EXPECT_LE(group.cells.size(), 7U);
    for (const int c : group.cells) ++seen[static_cast<std::size_t>(c)];
  }
  EXPECT_EQ(std::ranges::count(seen, 1), static_cast<std::ptrdiff_t>(seen.size()));
}

TEST(Cells, ThePapersGrid) {
  const Grid v1 = expand(load_sweep("sweeps/paper-v1.yaml"));
  EXPECT_EQ(v1.cells.size(), 6696U);
  std::size_t most = 0;
  for (const auto& group : v1.groups) most = std::max(most, group.cells.size());
  EXPECT_EQ(most, 31U) << "dense, and SnapKV, Ada-SnapKV and Quest at ten budgets each";
  for (const auto& cell : v1.cells) EXPECT_EQ(cell.problem, "");
  EXPECT_EQ(expand(load_sweep("sweeps/paper-v2.yaml")).cells.size(), 14499U);
}

TEST(Cells, AHundredThousandCellsExpandInSeconds) {
  std::string levels;
  for (int i = 1; i <= 1000; ++i) levels += fmt::format("{}{}", i > 1 ? "," : "", 16 * i);
  const auto begin = std::chrono::steady_clock::now();
  const Grid g = expand(
      parse(kBase, {"strategies.1={decode: quest, tokens: [" + levels + "]}",
                    "lengths=512,1024,2048,4096,8192,16384,32768,65536,128000,256000,300000,310000,320000",
                    "tasks=ruler_niah,ruler_vt,ruler_cwe,story_multihop"}));
  EXPECT_GE(g.cells.size(), 100'000U);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 10.0);
}

}  // namespace
}  // namespace lacuna
