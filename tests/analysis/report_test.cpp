// The report: escaping, completeness, and what is said when gnuplot is missing.
#include "analysis/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <regex>

#include "core/error.h"
#include "core/file.h"
#include "tests/analysis/synthetic.h"

namespace lacuna {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

fs::path fresh(const char* name) {
  const fs::path folder = fs::path(::testing::TempDir()) / (std::string("lacuna_report_") + name);
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

bool has_gnuplot() { return std::system("command -v gnuplot >/dev/null 2>&1") == 0; }

constexpr const char* kHostile =
    "</script><script>alert(1)</script> \"q\" 'a' \\n $(id) `touch owned` {/=20 x}_y^z@&\x01\xff";

ResultTable hostile() {
  synthetic::Spec spec;
  spec.models = {"Qwen2.5-7B", "Qwen2.5-14B"};
  spec.lengths = {16384, 32768};
  spec.samples = 6;
  ResultTable table = synthetic::make_table(spec);
  table.models[0].name = kHostile;
  table.models[0].rope = kHostile;
  table.tasks[1].name = kHostile;
  table.strategies[1].name = std::string("'; system('touch owned'); '") + kHostile;
  table.cells[3].failed = 1;
  table.cells[3].reason = "<img src=x onerror=alert(2)>";
  table.provenance = {{"sweep", kHostile}, {kHostile, kHostile}};
  table.index();
  return table;
}

Analysis analysis_of(const ResultTable& table) {
  ThreadPool threads(2);
  AnalysisOptions options;
  options.resamples = 200;
  options.predict = {parse_predict("model=72B,length=256K,compression=20")};
  return analyze(table, options, threads);
}

TEST(Report, EscapesHtml) {
  EXPECT_EQ(escape_html("<a href=\"x\">'&'</a>"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;");
  EXPECT_EQ(escape_html("é\xE2\x82\xAC"), "é\xE2\x82\xAC");
  EXPECT_EQ(escape_html("a\xff\x01z"), "a\xEF\xBF\xBD\xEF\xBF\xBDz");
  EXPECT_EQ(escape_html("\xC0\xBC"), "\xEF\xBF\xBD\xEF\xBF\xBD");  // overlong '<'
}

TEST(Report, GnuplotStringsAreInert) {
  EXPECT_EQ(gnuplot_string("it's \"x\" `id` \\n"), "'it\xE2\x80\x99s \"x\" `id` \\n'");
  EXPECT_EQ(gnuplot_string("a\xffz"), "'a\xEF\xBF\xBDz'");
  EXPECT_EQ(gnuplot_string("a\nb"), "'a b'");
}

TEST(Report, SameColorForTheSameMethodWhateverElseIsThere) {
  ResultTable few, many;
  few.strategies = {{"dense", Phase::kDense, "", "", ""}, {"quest", Phase::kDecode, "", "", "quest"}};
  many.strategies = {{"dense", Phase::kDense, "", "", ""},
                     {"mine", Phase::kDecode, "", "", ""},
                     {"snapkv", Phase::kDecode, "", "snapkv", ""},
                     {"quest", Phase::kDecode, "", "", "quest"}};
  few.index();
  many.index();
  EXPECT_EQ(method_color(few, 1), method_color(many, 3));
  EXPECT_NE(method_color(many, 1), method_color(many, 2));
  EXPECT_NE(method_color(many, 1), method_color(many, 3));
}

TEST(Report, HostileNamesStayText) {
  if (!has_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const fs::path folder = fresh("hostile");
  const ResultTable table = hostile();
  const std::string page = read_file(write_report(table, analysis_of(table), folder.string()));
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, Not(HasSubstr("<img src=x")));
  EXPECT_THAT(page, HasSubstr("&lt;/script&gt;&lt;script&gt;alert(1)"));
  EXPECT_FALSE(fs::exists("owned"));
  EXPECT_FALSE(fs::exists(folder / "owned"));
  EXPECT_FALSE(fs::exists(folder / "figures" / "owned"));
  for (const auto& entry : fs::directory_iterator(folder / "figures")) {
    EXPECT_TRUE(
        std::regex_match(entry.path().filename().string(), std::regex("[a-z0-9_]+\\.(svg|pdf|gnuplot)")))
        << entry.path();
    if (entry.path().extension() == ".svg") {
      EXPECT_THAT(read_file(entry.path().string()), Not(HasSubstr("<script>alert")));
    }
  }
  fs::remove_all(folder);
}

TEST(Report, IsOneFileWithEveryFigure) {
  if (!has_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const fs::path folder = fresh("whole");
  synthetic::Spec spec;
  spec.models = {"Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B"};
  spec.lengths = {16384, 65536};
  spec.samples = 6;
  const ResultTable table = synthetic::make_table(spec);
  fs::create_directories(folder / "patterns");
  write_file_atomically((folder / "patterns" / "quest, layer 3.svg").string(),
                        "<svg xmlns=\"http://www.w3.org/2000/svg\"/>");
  const std::string page = read_file(write_report(table, analysis_of(table), folder.string()));
  // Nothing is fetched: every source is data, links are relative.
  EXPECT_FALSE(std::regex_search(page, std::regex("(src|href)=\"(https?:|//)")));
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  std::size_t images = 0, panels = 0;
  for (std::size_t at = 0; (at = page.find("<img ", at)) != std::string::npos; ++at) ++images;
  for (const FigureGroup& group : make_figures(table, analysis_of(table))) {
    EXPECT_FALSE(group.panels.empty());
    for (const Panel& p : group.panels) {
      ++panels;
      EXPECT_GT(fs::file_size(folder / "figures" / (p.name + ".svg")), 1000u) << p.name;
      EXPECT_GT(fs::file_size(folder / "figures" / (p.name + ".pdf")), 1000u) << p.name;
      EXPECT_FALSE(p.title.empty());
    }
  }
  EXPECT_EQ(images, panels + 1);  // and the gallery's one
  // isoCost 2 phases x 2 lengths, 9 tasks, 2 methods, error x 2, breakdown x 2, speed-up x 2, fitted x 2
  EXPECT_EQ(panels, 4u + 9 + 2 + 2 + 2 + 2 + 2);
  for (const char* part :
       {"id=\"answers\"", "id=\"provenance\"", "quest, layer 3", "table-largest_sparsity", "extrapolates"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  fs::remove_all(folder);
}

TEST(Report, ThinResultsStillGiveAPage) {
  if (!has_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const fs::path folder = fresh("thin");
  synthetic::Spec spec;
  spec.models = {"Qwen2.5-7B"};
  spec.lengths = {16384};
  spec.samples = 1;
  ResultTable table = synthetic::make_table(spec);
  for (const bool empty : {false, true}) {
    if (empty) table.cells.clear();
    table.index();
    ThreadPool threads(2);
    AnalysisOptions options;
    options.resamples = 100;
    EXPECT_THAT(read_file(write_report(table, analyze(table, options, threads), folder.string())),
                HasSubstr("</html>"));
  }
  fs::remove_all(folder);
}

TEST(Report, MissingGnuplotIsNamedWithItsPackage) {
  const fs::path folder = fresh("nognuplot");
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", "/nowhere", 1);
  try {
    draw_figures({{"id", "heading", "caption", {{"name", "title", "plot sin(x)\n"}}}}, folder.string());
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), HasSubstr("gnuplot-nox"));
  }
  ::setenv("PATH", path.c_str(), 1);
  fs::remove_all(folder);
}

TEST(Report, GnuplotErrorsAreShown) {
  if (!has_gnuplot()) GTEST_SKIP() << "gnuplot is not installed";
  const fs::path folder = fresh("broken");
  try {
    draw_figures({{"id", "heading", "caption", {{"name", "title", "plot nonsense(\n"}}}}, folder.string());
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kLibrary);
    EXPECT_THAT(e.what(), HasSubstr("figures.gnuplot"));
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace lacuna
