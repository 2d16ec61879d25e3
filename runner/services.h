// What the runner needs of models, behind function objects: the real ones load folders, tests put a fake in
// their place.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "core/communicator.h"
#include "core/thread_pool.h"
#include "model/chat.h"
#include "model/engine.h"
#include "model/tokenizer.h"

namespace lacuna {

struct ModelServices {
  std::function<std::unique_ptr<Engine>(const EngineOptions&, Communicator&, ThreadPool&)> load_engine;
  std::function<std::unique_ptr<Tokenizer>(const std::string& folder)> load_tokenizer;
  std::function<ChatFormat(const std::string& folder)> detect_chat;
  std::function<ModelFacts(const std::string& folder)> read_facts;
  std::function<MemoryPlan(const ModelFacts&, Device, int tp, const JobShape& job)> plan_memory;
};

ModelServices real_model_services();

}  // namespace lacuna
