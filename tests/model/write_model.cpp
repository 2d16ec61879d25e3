// write_model CASE FOLDER PROMPT EXPECTED: a golden case as a model folder, with its 64-token prompt and
// greedy tokens.
#include <fmt/ranges.h>

#include <span>

#include "core/file.h"
#include "core/npy.h"
#include "tests/model/tiny_model.h"

int main(int argc, char** argv) {
  using namespace lacuna;
  if (argc != 5) return 2;
  const std::string golden = std::string("tests/model/golden/") + argv[1];
  testing::write_tiny_model(argv[2], read_file(golden + "/config.json"));
  testing::write_text(argv[3], fmt::format("{}\n", fmt::join(testing::tiny_prompt(64), ",")));
  const Tensor tokens = read_npy(golden + "/tokens.npy");
  const auto steps = static_cast<std::size_t>(tokens.shape()[1]);
  testing::write_text(
      argv[4], fmt::format("{}\n", fmt::join(std::span(tokens.as<std::int32_t>() + 2 * steps, steps), ",")));
  return 0;
}
