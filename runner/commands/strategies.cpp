// lacuna strategies: the methods and their parameters, from the declarations.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "attention/catalogue.h"
#include "runner/commands/commands.h"

namespace lacuna {

void add_strategies_command(CLI::App& app) {
  struct Options {
    std::string method;
    bool markdown = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("strategies", "Lists the methods of the three slots and their parameters");
  verb->add_option("method", options->method, "Only this method, in every slot that has it");
  verb->add_flag("--markdown", options->markdown, "Write docs/strategies.md");
  verb->footer("Example: lacuna strategies quest");
  verb->callback([options] {
    const std::string text = options->markdown ? strategies_markdown() : strategies_text(options->method);
    std::fwrite(text.data(), 1, text.size(), stdout);
  });
}

}  // namespace lacuna
