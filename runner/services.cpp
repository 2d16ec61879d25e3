#include "runner/services.h"

namespace lacuna {

ModelServices real_model_services() {
  return {.load_engine = [](const EngineOptions& options, Communicator& communicator,
                            ThreadPool& threads) { return Engine::load(options, communicator, threads); },
          .load_tokenizer =
              [](const std::string& folder) { return std::make_unique<Tokenizer>(Tokenizer::load(folder)); },
          .detect_chat = [](const std::string& folder) { return detect_chat_format(folder); },
          .read_facts = [](const std::string& folder) { return read_model_facts(folder); },
          .plan_memory = [](const ModelFacts& facts, Device device, int tp,
                            const JobShape& job) { return plan_memory(facts, device, tp, job); }};
}

}  // namespace lacuna
