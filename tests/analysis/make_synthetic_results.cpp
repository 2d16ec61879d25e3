// make_synthetic_results DIR [paper|tiny]: a results.h5 from a known law, for tests of the program and for
// looking at reports. `paper` has the size of the published study: 7065 cells and more, 100 samples each.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>

#include "core/error.h"
#include "tests/analysis/synthetic.h"

int main(int argc, char** argv) {
  try {
    const std::string kind = argc > 2 ? argv[2] : "tiny";
    lacuna::synthetic::Spec spec;
    if (kind == "paper") {
      spec.methods = {{"vertical_slash", lacuna::Phase::kPrefill}, {"block_sparse", lacuna::Phase::kPrefill},
                      {"flexprefill", lacuna::Phase::kPrefill},    {"snapkv", lacuna::Phase::kDecode},
                      {"ada_snapkv", lacuna::Phase::kDecode},      {"quest", lacuna::Phase::kDecode}};
      const lacuna::synthetic::Law law;
      // Methods differ in how dearly they pay for compression; longer prompts tolerate more.
      spec.score = [law](const lacuna::ResultModel& model, int task, std::int64_t length,
                         const std::string& method, double s) {
        const double dear = method == "block_sparse"  ? 1.6
                            : method == "flexprefill" ? 1.2
                            : method == "snapkv"      ? 1.1
                                                      : 0.6;
        lacuna::synthetic::Law own = law;
        own.gamma *= dear * 16384.0 / (8192.0 + double(length));
        own.eps += 3.0;
        return 1 / (1 + std::exp(-own.logit(model.shape.parameters, double(length), 1 / (1 - s), task)));
      };
    } else {
      spec.models = {"Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B"};
      spec.lengths = {16384, 32768, 131072};
      spec.samples = 20;
    }
    lacuna::ResultTable table = lacuna::synthetic::make_table(spec);
    if (kind == "hostile") {  // what a model or a file could contain
      table.models[0].name = "</script><script>alert(1)</script> \"q\" 'a' \\ $(id) `id` {/=20 x}_y^z@&";
      table.tasks[0].name = "<b>bold</b>_sub^sup";
      table.strategies[1].name = "vertical\"; system('touch /tmp/owned'); \"slash";
      table.cells[1].failed = 1;
      table.cells[1].reason = "<img src=x onerror=alert(2)> line\nbreak";
    }
    std::filesystem::create_directories(argv[1]);
    lacuna::synthetic::write_results(table, std::string(argv[1]) + "/results.h5");
    std::printf("%zu cells\n", table.cells.size());
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
